"""A run, from its configuration to its published model: the parts are built here and worked through stage by stage."""
