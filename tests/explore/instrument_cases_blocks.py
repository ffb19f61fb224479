"""What functions do, case by case, compiled as it is and instrumented, for both to do the same: functions, classes and blocks.

Each function is a case: what it returns, raises and notes in `log` is compared. Layout is given up for one thing after
another that Python can do.
"""

# ruff: noqa
# fmt: off

from instrument_common import *


def case_generator():
    def g(b):
        for x in b.l:
            b.seen = yield x
        return b.seen
    b = Box(l=[1, 2], seen=0)
    i = g(b)
    a = next(i)
    c = i.send(5)
    return a, c, b.seen, list(i)


def case_yield_from():
    def g(b):
        b.r = yield from [1, 2]
    b = Box()
    return list(g(b)), b.r


def case_lambda_and_default():
    b = Box(a=1)
    f = lambda x, y=b.a: x.a + y
    b.a = 5
    return f(b)


def case_closure():
    b = Box(n=0)
    def f():
        nonlocal b
        b.n += 1
        return b
    f()
    return f().n


def case_decorator():
    b = Box(l=[])
    def d(f):
        b.l.append(f.__name__)
        return f
    @d
    def g(): return b.l
    return g()


def case_property():
    class P:
        def __init__(self): self._x = 1
        @property
        def x(self): return note(self._x)
        @x.setter
        def x(self, v): self._x = note(v)
    p = P()
    p.x += 4
    return p.x


def case_slots():
    class S:
        __slots__ = ('a',)
    s = S()
    s.a = 1
    s.a += 1
    try:
        s.b = 2
    except AttributeError:
        return s.a


def case_super():
    class A:
        def f(self): return 1
        @classmethod
        def c(cls): return cls.__name__
    class B(A):
        def f(self): return super().f() + 1
        @classmethod
        def c(cls): return super().c()
        def __init__(self): super().__init__()
    return B().f(), B.c()


def case_mangled():
    class M:
        def __init__(self): self.__a = Box(n=1)
        def f(self):
            self.__a.n += 1
            self.__b = [1]
            self.__b += [2]
            del self.__b[0]
            return self.__g(self.__a.n), self.__b
        def __g(self, n): return n
    return M().f(), sorted(vars(M()))


def case_class_attribute():
    class C:
        n = 1
        def f(self):
            self.n += 1
            type(self).n += 10
            return self.n, C.n
    return C().f()


def case_inner_class():
    class C:
        class D:
            def f(self): return [self]
        x = [1]
        y = x[0]
    return C.y, len(C.D().f())


def case_with():
    from contextlib import contextmanager
    @contextmanager
    def c(b):
        b.n = 1
        yield b
        b.n = 2
    b = Box()
    with c(b) as b.me:
        note(b.n)
    return b.n


def case_try():
    b = Box(n=0)
    try:
        b.n = 1
        b.missing
    except (AttributeError, KeyError) as error:
        b.n += 1
        b.e = type(error).__name__
    else:
        b.n = 9
    finally:
        b.n *= 10
    return b.n, b.e


def case_walrus():
    b = Box(l=[1, 2])
    if (n := len(b.l)) > 1:
        return n, [y := x for x in b.l], y


def case_f_string():
    b = Box(a=[1])
    return f'{b.a[0]:>3}{b.a!r}'


def case_match():
    b = Box(l=[1, 2])
    match b.l:
        case [first, *rest]:
            return first, rest


def case_global():
    global counter
    counter = 1
    counter += 1
    return counter


def case_assert_and_raise():
    b = Box(l=[])
    assert not b.l
    raise KeyError(b.l)


def case_starred_value():
    b = Box(l=[1])
    b.t = *b.l, 2
    return b.t, (*b.l, *b.l)


def case_containers():
    d = deque([1])
    d.append(2)
    d.appendleft(0)
    b = bytearray(4)
    b[1] = 7
    b[2:4] = b'ab'
    return d, b, b[1], b.hex()


def case_return_in_a_loop():
    b = Box(d={'a': 1})
    for k, v in b.d.items():
        return k, v


def case_recursion():
    b = Box()
    def f(n):
        b.n = n
        return 1 if not n else n * f(n - 1)
    return f(5), b.n


def case_memory_view():
    b = bytearray(8)
    m = memoryview(b)
    m[2] = 5
    m[4:6] = b'xy'
    return b, m[2], bytes(m[4:6])


def case_static_and_bound():
    class C:
        @staticmethod
        def s(x): return x
        def m(self): return self.s(2)
    f = C().m
    return f(), C.s(1)
