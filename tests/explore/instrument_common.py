"""What the cases of instrumented code use: `Told` notes in `log` what is done to it, and in which order."""

from collections import deque  # noqa: F401 - for the cases

log = []


def note(value):
    log.append(value)
    return value


class Box:
    def __init__(self, **values):
        self.__dict__.update(values)


class Told:
    """Says what is done to it, in order."""

    def __init__(self, name):
        object.__setattr__(self, "name", name)

    def __repr__(self):
        return self.name

    def __getattr__(self, name):
        log.append(f"{self.name}.{name}")
        return Told(f"{self.name}.{name}")

    def __setattr__(self, name, value):
        log.append(f"{self.name}.{name} =")

    def __delattr__(self, name):
        log.append(f"del {self.name}.{name}")

    def __getitem__(self, key):
        log.append(f"{self.name}[{key}]")
        return Told(f"{self.name}[{key}]")

    def __setitem__(self, key, value):
        log.append(f"{self.name}[{key}] =")

    def __delitem__(self, key):
        log.append(f"del {self.name}[{key}]")

    def __contains__(self, one):
        log.append(f"in {self.name}")
        return True

    def __bool__(self):
        log.append(f"bool {self.name}")
        return False

    def __iadd__(self, other):
        log.append(f"{self.name} +=")
        return self

    def __add__(self, other):
        log.append(f"{self.name} +")
        return self

    def __iter__(self):
        log.append(f"iter {self.name}")
        return iter((Told(f"{self.name} 0"), Told(f"{self.name} 1")))

    def __call__(self, *args, **kwargs):
        log.append(f"{self.name}({len(args)}, {sorted(kwargs)})")
        return self
