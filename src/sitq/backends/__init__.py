"""Where tasks are kept: `base` is the contract, everything else here fulfils it."""
