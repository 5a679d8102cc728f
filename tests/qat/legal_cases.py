"""Small graphs, one per operator and per way of using it that makes a difference to its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.graphs import normal, positive
from tests.qat.legal_case import F32, Case, case, coarse, spread
from tests.qat.legal_layers import activations, resized, transposed, windows


def arithmetic() -> Iterator[Case]:
    shapes = {"same": (2, 3, 4), "last": (4,), "middle": (3, 1), "one": (1,), "scalar": (), "larger": (2, 1, 3, 4)}
    for op in ("Add", "Sub", "Mul", "Div", "Min", "Max"):
        for name, shape in shapes.items():
            w = positive(*shape, seed=3) if op == "Div" else coarse(*shape, seed=3, shift=0.05)
            rank = 4 if name == "larger" else 3
            yield case(f"{op} {name}", f"y = {op}(x, w)", coarse(2, 3, 4), rank, w=np.asarray(w, F32))
        yield case(f"{op} the other way", f"y = {op}(w, x)", positive(2, 3, 4), w=coarse(4, shift=0.013))
    for op in ("Min", "Max", "Sum", "Mean"):
        yield case(
            f"{op} of three",
            f"y = {op}(x, w, v)",
            coarse(2, 3, 4),
            w=coarse(4, shift=0.05),
            v=coarse(3, 1, shift=0.025),
        )
    yield case("Sum of one", "y = Sum(x)", normal(2, 3))
    for exponent in (2.0, 3.0, 0.5, -1.5):
        yield case(f"Pow {exponent}", "y = Pow(x, e)", positive(3, 4), names=("x",), e=np.asarray(exponent, F32))
    yield case("Pow below 0", "y = Pow(x, e)", normal(3, 4), names=("x",), e=np.asarray(3, F32))
    yield case("Pow by column", "y = Pow(x, e)", positive(3, 4), names=("x",), e=F32([1, 2, 3, 0.5]))
    yield case("Pow of a column", "y = Pow(x, e)", positive(3, 1), names=("x",), e=F32([1, 2, 3, 0.5]))
    yield case("Pow int", "y = Pow(x, e)", normal(3, 4), names=("x",), e=np.asarray(2, np.int64))
    low, high = np.asarray(-0.4, F32), np.asarray(0.6, F32)
    yield case("Clip", "y = Clip(x, l, h)", coarse(3, 8), names=("x",), l=low, h=high)
    yield case("Clip low", "y = Clip(x, l)", coarse(3, 8), names=("x",), l=low)
    yield case("Clip high", "y = Clip(x, , h)", coarse(3, 8), names=("x",), h=high)
    yield case("Clip trained", "y = Clip(x, l, h)", coarse(3, 8), l=low, h=high)
    yield case("Clip opset 10", "y = Clip<min=-0.4,max=0.6>(x)", coarse(3, 8), opset=10)
    c = np.arange(12).reshape(3, 4) % 3 == 0
    yield case("Where", "y = Where(c, x, w)", normal(3, 4), c=c, w=normal(3, 4))
    for name, shape in {"row": (4,), "column": (3, 1), "scalar": (), "larger": (2, 3, 4)}.items():
        rank = 3 if name == "larger" else 2
        yield case(f"Where {name}", "y = Where(c, x, w)", normal(3, 4), rank, c=c, w=np.asarray(normal(*shape), F32))
    yield case("Where any size", "y = Where(c, w, x)", normal(3, 4), symbolic=(0, 1), c=c, w=normal(4))
    yield case("Where condition", "y = Where(c, x, w)", normal(3, 4), c=c[0], w=normal(1, 4))
    yield case("Cast", "d = Cast<to=11>(x) y = Cast<to=1>(d)", normal(3, 4))


def products() -> Iterator[Case]:
    x, w = normal(3, 4), normal(4, 5)
    yield case("Gemm", "y = Gemm(x, w, b)", x, w=w, b=normal(5))
    yield case("Gemm alone", "y = Gemm(x, w)", x, w=w)
    yield case(
        "Gemm turned",
        "y = Gemm<alpha=0.5,beta=2.0,transA=1,transB=1>(x, w, b)",
        normal(4, 3),
        w=normal(5, 4),
        b=normal(3, 1),
    )
    yield case("Gemm one bias", "y = Gemm<alpha=0.5,transB=1>(x, w, b)", x, w=normal(5, 4), b=normal(1))
    yield case("MatMul", "y = MatMul(x, w)", normal(2, 3, 4), w=w)
    yield case("MatMul batches", "y = MatMul(x, w)", normal(2, 3, 3, 4), w=normal(3, 4, 5))
    yield case("MatMul broadcast", "y = MatMul(x, w)", x, 3, w=normal(2, 4, 5))
    yield case("MatMul by a vector", "y = MatMul(x, w)", normal(2, 3, 4), 2, w=normal(4))
    yield case("MatMul of a vector", "y = MatMul(x, w)", normal(4), 2, w=normal(2, 4, 3))
    yield case("MatMul of vectors", "y = MatMul(x, w)", normal(4), 0, w=normal(4))
    for equation, a, b, rank in [
        ("ij,jk->ik", (3, 4), (4, 5), 2), ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4), 4),
        ("bhqk,bkhd->bqhd", (2, 2, 3, 5), (2, 5, 2, 4), 4), ("abc,cd->dba", (2, 3, 4), (4, 5), 3),
        ("ij,kl->lijk", (2, 3), (4, 5), 4), ("abc,bc->a", (2, 3, 4), (3, 4), 1), ("ij,ik->i", (3, 4), (3, 5), 1),
    ]:  # fmt: skip
        body = f'y = Einsum<equation="{equation}">(x, w)'
        yield case(f"Einsum {equation}", body, normal(*a), rank, w=normal(*b))
    yield case("Einsum ijk->ki", 'y = Einsum<equation="ijk->ki">(x)', normal(2, 3, 4), 2)
    yield case(
        "Einsum any size",
        'y = Einsum<equation="bid,bjd->bij">(x, w)',
        normal(2, 3, 4),
        w=normal(2, 5, 4),
        symbolic=(0, 1),
    )
    yield case("a parameter twice", "z = Mul(w, w) y = Add(z, x)", normal(3), w=normal(3))
    yield case(
        "a parameter in two places", "a = MatMul(x, w) r = Tanh(a) y = MatMul(r, w)", normal(3, 3), w=normal(3, 3)
    )
    yield case(
        "a tensor twice", "t = Tanh(w) z = Mul(t, t) y = Concat<axis=0>(z, t, x, t)", normal(2, 3), w=normal(2, 3)
    )


def moves() -> Iterator[Case]:
    x = normal(2, 3, 4)
    yield case("Concat", "y = Concat<axis=1>(x, w)", x, w=normal(2, 2, 4))
    yield case("Concat last", "y = Concat<axis=-1>(x, w)", x, w=normal(2, 3, 1))
    parts = {"a": 3, "b": 3}
    yield case("Split", "a, b = Split<axis=1>(x, s)", normal(2, 5, 3), parts, s=np.int64([2, 3]))
    yield case("Split equally", "a, b = Split<axis=2>(x)", x, parts)
    yield case("Split unequally", "a, b = Split<axis=1,num_outputs=2>(x)", normal(2, 5, 4), parts, opset=18)
    yield case("Split, one part read", "a, b = Split<axis=-2>(x, s) y = Relu(a)", normal(2, 5, 3), s=np.int64([2, 3]))
    yield case("Split opset 11", "a, b = Split<axis=1,split=[2,3]>(x)", normal(2, 5, 3), parts, opset=11)
    both = {"y": 3, "z": 3}
    body = "a, b = Split<axis=1>(x, s) y = Tanh(a) z = Exp(b)"
    yield case("Split, one part for the loss", body, normal(2, 5, 3), both, loss=("y",), s=np.int64([2, 3]))
    for op, reads in {
        "Slice": "a = Slice(x, o, t, o) b = Slice(x, t, f, o)",
        "Gather": "a = Gather(x, o) b = Gather(x, t)",
    }.items():
        x4 = normal(4 if op == "Slice" else 2, 3)
        more = {"o": np.int64([0]), "t": np.int64([2 if op == "Slice" else 1]), "f": np.int64([4])}
        body = f"{reads} y = Tanh(a) z = Exp(b)"
        more = more if op == "Slice" else {"o": more["o"], "t": more["t"]}
        yield case(f"{op}, one of all parts for the loss", body, x4, {"y": 2, "z": 2}, loss=("y",), **more)
    x3 = normal(4, 5, 6)
    yield case("Slice", "y = Slice(x, s, e, a)", x3, s=np.int64([1, -4]), e=np.int64([3, 100]), a=np.int64([0, 2]))
    yield case(
        "Slice steps",
        "y = Slice(x, s, e, a, t)",
        x3,
        s=np.int64([0, 1]),
        e=np.int64([100, 6]),
        a=np.int64([1, -1]),
        t=np.int64([2, 3]),
    )
    yield case(
        "Slice backwards",
        "y = Slice(x, s, e, a, t)",
        x3,
        s=np.int64([-1, 4]),
        e=np.int64([-100, 0]),
        a=np.int64([1, -1]),
        t=np.int64([-1, -2]),
    )
    yield case(
        "Slice mixed",
        "y = Slice(x, s, e, a, t)",
        x3,
        s=np.int64([3, 100]),
        e=np.int64([-1, 0]),
        a=np.int64([1, 2]),
        t=np.int64([1, -2]),
    )
    yield case("Gather rows", "y = Gather(w, x)", np.int64([[0, 1, 1], [4, -1, 2]]), 3, w=normal(5, 4))
    yield case("Gather", "y = Gather<axis=1>(x, i)", normal(3, 5, 2), i=np.int64([4, 0, 0, -2]))
    yield case("Gather one", "y = Gather<axis=1>(x, i)", normal(3, 5, 2), 2, i=np.asarray(-1, np.int64))
    yield case(
        "GatherElements",
        "y = GatherElements<axis=1>(x, i)",
        normal(3, 5),
        i=np.int64([[4, 0, 0], [1, -1, 2], [3, 3, 3]]),
    )
    yield case("GatherND", "y = GatherND(x, i)", normal(3, 5, 2), 2, i=np.int64([[0, 1], [2, 4], [0, 1]]))
    yield case("ScatterND", "y = ScatterND(x, i, u)", normal(5, 3), i=np.int64([[0], [3]]), u=normal(2, 3))
    yield case(
        "ScatterElements",
        "y = ScatterElements<axis=1>(x, i, u)",
        normal(3, 5),
        i=np.int64([[0, 2], [3, 1], [4, 0]]),
        u=normal(3, 2),
    )
    yield case("Reshape", "y = Reshape(x, s)", x, 2, s=np.int64([0, -1]))
    yield case("Transpose", "y = Transpose<perm=[2,0,1]>(x)", x)
    yield case("Transpose all", "y = Transpose(x)", x)
    yield case("Flatten", "y = Flatten<axis=2>(x)", x, 2)
    yield case("Squeeze", "y = Squeeze(x, s)", normal(2, 1, 4, 1), 3, s=np.int64([-1]))
    yield case("Squeeze all", "y = Squeeze(x)", normal(2, 1, 4, 1), 2)
    yield case("Unsqueeze", "y = Unsqueeze(x, s)", normal(2, 4), 4, s=np.int64([0, -1]))
    yield case("Unsqueeze opset 11", "y = Unsqueeze<axes=[1]>(x)", normal(2, 4), 3, opset=11)
    yield case("Expand", "y = Expand(x, s)", normal(3, 1), 3, s=np.int64([2, 3, 4]))
    yield case("Expand small", "y = Expand(x, s)", normal(2, 3, 1), s=np.int64([1, 4]))
    yield case("Tile", "y = Tile(x, s)", normal(2, 3), s=np.int64([2, 3]))
    yield case("TopK", "y, i = TopK<axis=1>(x, k)", spread(4, 5, 3), k=np.int64([2]))
    yield case("TopK smallest", "y, i = TopK<axis=-1,largest=0>(x, k)", spread(4, 5), k=np.int64([2]))
    yield case("Trilu", "y = Trilu<upper=0>(x, k)", normal(2, 4, 5), k=np.asarray(1, np.int64))
    p = np.int64([0, 1, 2, 1, 0, 1])
    yield case("Pad", "y = Pad(x, p)", x, p=p)
    yield case("Pad by a value", "y = Pad(x, p, v)", x, names=("x",), p=p, v=np.asarray(1.5, F32))
    yield case("Pad less", "y = Pad(x, p)", x, p=np.int64([0, -1, 2, 1, 0, -1]))
    yield case("Pad axes", "y = Pad(x, p, , a)", x, opset=18, p=np.int64([1, 2]), a=np.int64([-2]))
    for mode in ("reflect", "edge"):
        yield case(f"Pad {mode}", f'y = Pad<mode="{mode}">(x, p)', normal(2, 3, 4), symbolic=(0, 1, 2), p=p)
    yield case("Pad wrap", 'y = Pad<mode="wrap">(x, p)', x, opset=19, p=p)
    for mode in ("DCR", "CRD"):
        for symbolic in ((), (0, 2, 3)):
            body = f'y = DepthToSpace<blocksize=2,mode="{mode}">(x)'
            yield case(f"DepthToSpace {mode} {symbolic}", body, normal(2, 12, 2, 3), symbolic=symbolic)
    yield case("SpaceToDepth", "y = SpaceToDepth<blocksize=2>(x)", normal(2, 3, 4, 6), symbolic=(0,))


def reductions() -> Iterator[Case]:
    ways = [([1], 1), ([1], 0), ([0, 2], 0), ([-1], 1), (None, 0), (None, 1)]
    for op in ("Sum", "Mean", "L1", "L2", "LogSum", "LogSumExp", "SumSquare", "Max", "Min", "Prod"):
        x = positive(2, 3, 4) if op == "LogSum" else spread(2, 3, 4) * F32(0.5 if op == "Prod" else 1)
        for opset in (11, 17, 18):
            for axes, keep in ways:
                rank = 3 if keep else 0 if axes is None else 3 - len(axes)
                as_input = opset >= (13 if op == "Sum" else 18)
                reads = "x, a" if axes and as_input else "x"
                attrs = f"keepdims={keep}" + (f",axes={axes}" if axes and not as_input else "")
                more = {"a": np.int64(axes)} if axes and as_input else {}
                body = f"y = Reduce{op}<{attrs}>({reads})"
                yield case(f"Reduce{op} {axes} {keep} opset {opset}", body, x, rank, opset=opset, **more)
        yield case(f"Reduce{op} nothing", f"y = Reduce{op}<noop_with_empty_axes=1>(x)", x, opset=18)


def norms() -> Iterator[Case]:
    x = normal(2, 3, 5)
    last = {"w": positive(5), "b": normal(5)}
    yield case("LayerNormalization", "y = LayerNormalization(x, w, b)", x, **last)
    yield case(
        "LayerNormalization 3 outputs", "y, m, s = LayerNormalization<epsilon=0.1>(x, w, b)", x, **last, opset=21
    )
    yield case("LayerNormalization without bias", "y = LayerNormalization(x, w)", x, w=positive(5))
    yield case(
        "LayerNormalization axis", "y = LayerNormalization<axis=1>(x, w, b)", x, w=positive(3, 5), b=normal(3, 5)
    )
    yield case("LayerNormalization broadcast", "y = LayerNormalization<axis=1>(x, w, b)", x, **last)
    image = normal(2, 4, 5, 3)
    four = {"w": positive(4), "b": normal(4)}
    yield case("InstanceNormalization", "y = InstanceNormalization(x, w, b)", image, **four)
    yield case(
        "InstanceNormalization 1-D", "y = InstanceNormalization(x, w, b)", normal(2, 4, 5), **four, symbolic=(0, 2)
    )
    for symbolic in ((), (0, 2, 3)):
        body = "y = GroupNormalization<num_groups=2,epsilon=0.01>(x, w, b)"
        yield case(f"GroupNormalization {symbolic}", body, image, **four, opset=21, symbolic=symbolic)
    yield case("LRN", "y = LRN<size=3,alpha=0.3,beta=0.6,bias=1.5>(x)", image)
    statistics = {"m": normal(4, seed=1), "v": positive(4, seed=2)}
    body = "y = BatchNormalization<epsilon=0.01>(x, w, b, m, v)"
    for shape in ((2, 4, 5, 3), (6, 4), (2, 4, 5)):
        yield case(
            f"BatchNormalization {len(shape)} axes", body, normal(*shape), names=("x", "w", "b"), **four, **statistics
        )
    body = "y, m2, v2 = BatchNormalization<training_mode=1>(x, w, b, m, v)"
    yield case("BatchNormalization in training", body, image, names=("x", "w", "b"), **four, **statistics)


def recurrent() -> Iterator[Case]:
    hidden, inputs = 3, 2
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            weights = {
                "w": normal(count, gates * hidden, inputs, scale=0.5),
                "r": normal(count, gates * hidden, hidden, scale=0.5),
                "b": normal(count, 2 * gates * hidden, scale=0.5),
            }
            states = {"h": normal(count, 2, hidden, scale=0.5)} | (
                {"c": normal(count, 2, hidden, seed=4)} if op == "LSTM" else {}
            )
            attrs = f'hidden_size={hidden},direction="{direction}"'
            x = normal(4, 2, inputs)
            body = f"y, yh{', yc' if op == 'LSTM' else ''} = {op}<{attrs}>(x, w, r, b, , {', '.join(states)})"
            ends = {"y": 4, "yh": 3} | ({"yc": 3} if op == "LSTM" else {})
            yield case(f"{op} {direction}", body, x, ends, **weights, **states)
            yield case(f"{op} {direction} alone", f"y = {op}<{attrs}>(x, w, r, b)", x, 4, **weights)
            symbolic = (0, 1) if direction == "forward" else (1,)
            yield case(f"{op} {direction} any batch", f", yh = {op}<{attrs}>(x, w, r)", x, {"yh": 3}, symbolic=symbolic,
                       w=weights["w"], r=weights["r"])  # fmt: skip
    body = 'y = LSTM<hidden_size=3,activations=["Sigmoid","Tanh","Tanh"]>(x, w, r)'
    weights = {"w": normal(1, 12, 2, scale=0.5), "r": normal(1, 12, 3, scale=0.5)}
    yield case("LSTM activations named", body, normal(4, 2, 2), 4, **weights)
    body = "y = GRU<hidden_size=3,linear_before_reset=1>(x, w, r, b)"
    yield case(
        "GRU linear before reset",
        body,
        normal(4, 2, 2),
        4,
        w=normal(1, 9, 2, scale=0.5),
        r=normal(1, 9, 3, scale=0.5),
        b=normal(1, 18, scale=0.5),
    )


GROUPS = (windows, transposed, resized, activations, arithmetic, products, moves, reductions, norms, recurrent)
CASES = tuple(c for group in GROUPS for c in group())
