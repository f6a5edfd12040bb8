class Invariants:
    def __init__(self, case): pass
    def __call__(self, runtime, entry): pass
