def why_not(*a): return "no"
def attend(*a, **k): raise ValueError
