"""The admin port: health, metrics, and questions about the policy in force, over HTTP."""
