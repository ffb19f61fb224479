"""What functions do, case by case, compiled as it is and instrumented, for both to do the same: expressions and assignments.

Each function is a case: what it returns, raises and notes in `log` is compared. Layout is given up for one thing after
another that Python can do.
"""

# ruff: noqa
# fmt: off

from instrument_common import *


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
