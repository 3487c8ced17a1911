"""Where the counters of limits are kept, and the arithmetic that fills them: what a tenant may do, and has done."""
