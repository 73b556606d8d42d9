"""ReFrame on this machine: no modules, no scheduler, one thing at a time."""

site_configuration = {
    "systems": [
        {
            "name": "here",
            "descr": "the machine that ReFrame runs on",
            "hostnames": [".*"],
            "prefix": "runs/reframe",
            "partitions": [
                {"name": "cores", "scheduler": "local", "launcher": "local", "environs": ["builtin"], "max_jobs": 1},
            ],
        }
    ],
    "general": [{"purge_environment": False}],
}
