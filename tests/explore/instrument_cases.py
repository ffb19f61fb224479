"""What functions do, case by case: a module that is compiled as it is, and instrumented, for both to do the same.

Each function is a case: what it returns, raises and notes in `log` is compared. Layout is given up for one thing after
another that Python can do.
"""

# ruff: noqa
# fmt: off

from collections import deque

log = []

def note(value):
    log.append(value)
    return value

class Box:
    def __init__(self, **values):
        self.__dict__.update(values)

class Told:
    '''Says what is done to it, in order.'''
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


def case_attributes():
    b = Box(a=1)
    b.c = b.a + 1
    del b.a
    return b.__dict__


def case_missing_attribute():
    return Box().a


def case_items():
    d = {}
    d['a'] = [1]
    d['a'][0] = 2
    d['b'] = 3
    del d['b']
    return d


def case_slices():
    l = list(range(9))
    l[2:4] = [7]
    l[1:3] += [5, 5]
    del l[-2:]
    return l, l[1:], l[::2]


def case_two_keys():
    d = {}
    d[1, 2] = 3
    d[1, 2] += 1
    return d, d[1, 2]


def case_in_place_keeps_the_object():
    b = Box(l=[1])
    l = b.l
    b.l += [2]
    return l is b.l, l


def case_in_place_of_an_alias():
    b = Box(l=[1])
    l = b.l
    l += [2]
    return b.l, l is b.l


def case_in_place_of_each_kind():
    n = 7
    n -= 1
    n *= 5
    n //= 2
    n **= 2
    n %= 100
    n <<= 3
    n >>= 1
    n |= 3
    n ^= 5
    n &= 255
    f = 1.0
    f /= 4
    s = {1}
    s |= {2}
    s -= {1}
    return n, f, s


def case_in_place_in_a_tuple():
    t = ([],)
    try:
        t[0] += [1]
    except TypeError:
        return t


def case_in_place_told():
    t = Told('t')
    t.a += note(1)
    t[note(2)] += note(3)
    t.b[note(4)].c += t.d


def case_tuple_targets():
    b = Box()
    b.x, b.y = 1, 2
    b.x, b.y = b.y, b.x
    (b.z, [w, *b.r]) = 1, (2, 3, 4)
    return b.__dict__, w


def case_tuple_targets_in_order():
    x, i = [0, 0, 0], 2
    x[i], i = 5, 1
    i, x[i] = 0, 6
    return x, i


def case_too_many_to_unpack():
    b = Box()
    b.x, b.y = 1, 2, 3


def case_several_targets():
    b = Box()
    a = b.x = b.y = note([])
    return a is b.x is b.y


def case_several_targets_told():
    t = Told('t')
    t.a = t[note(1)] = t.b.c = note(2)


def case_value_before_target():
    t = Told('t')
    t.a.b = t.c.d
    t.e[t.f] = t.g


def case_target_named_in_value():
    a = Told('a')
    a.x = (a := Told('b')).y
    return a.name


def case_annotated():
    b = Box()
    b.x: int = 3
    b.y: str
    return b.__dict__


def case_deletes():
    t = Told('t')
    del t.a, t[note(1)], t.b.c


def case_delete_a_name():
    a = 1
    del a
    return a


def case_calls():
    t = Told('t')
    t.f(t.a, *t.b, k=t.c, **{'m': 1})
    return max(*[1, 2]), dict(a=1, **{'b': 2})


def case_method_named_later():
    l = []
    l.append(note(1))
    f = l.append
    f(2)
    return l


def case_chained_calls():
    return ','.join(str(n) for n in [1, 2]).split(',')


def case_keyword_named_like_ours():
    def f(owner, name, *args, **kw):
        return owner, name, args, kw
    b = Box(f=f)
    return b.f(name=1, owner=2)


def case_functions_that_look():
    l = [3, 1]
    return len(l), sorted(l), list(l), any(l), sum(l), max(l), [*l], {*l}, tuple(l)


def case_looking_at_what_it_is_not():
    return len('ab'), sorted('ba'), list(iter(range(2))), bool(0)


def case_membership():
    l = [1]
    t = Told('t')
    return 1 in l, 2 not in l, 1 in t, 1 < 2 in l


def case_comparison():
    a, b = Box(l=[1]), Box(l=[1])
    return a.l == b.l, a.l != [2], a.l < [2], 1 < 2 <= 2


def case_joining():
    a = Box(l=[1], s={1})
    return a.l + [2], a.s | {2}, a.s - {1}, 'a' + 'b', 3 - 1


def case_truth():
    t = Told('t')
    return not t, [] or 1, [1] and 2, (1 if t else 2), not []


def case_truth_each_once():
    t = Told('t')
    if t.a or t.b:
        return 1
    while t.c:
        pass
    return 0 if t.d and t.e else 2


def case_while_with_else():
    l = [1, 2]
    while l:
        l.pop()
    else:
        return l


def case_for_with_else():
    for x in [1, 2]:
        if x == 2: break
    else:
        return 0
    return x


def case_for_into_an_attribute():
    b = Box()
    for b.x in [1, 2]:
        note(b.x)
    return b.x


def case_a_list_that_grows():
    l = [1]
    for x in l:
        if x < 4: l.append(x + 1)
    return l


def case_comprehensions():
    b = Box(l=[1, 2])
    return [x for x in b.l if x > 1], {x: y for x in b.l for y in b.l}, {x for x in b.l}


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
