"""What logs tell about a policy: the rules that refused requests need, and what another policy would have decided."""
