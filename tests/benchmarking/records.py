"""Records of runs that nobody made, for the tests of what is done with records."""


def benchmark(provider, role, turn, data, **more):
    about = {
        "suite": "training",
        "case": "16-64-1",
        "batch": 32,
        "reason": "a critic",
        "cases": "named",
        "goal": 0.0,
        "against": "",
        "provider": provider,
        "role": role,
        "device": "cpu",
        "threads": 1,
        "kernel": "",
        "chosen": True,
        "flops": 4e6,
        "per": 10,
        "turn": turn,
    }
    return {"extra_info": about | more, "stats": {"data": data}}
