"""Ways to time a step."""

from benchmarks.harness.timing import split_kernels


def test_the_kernels_of_a_profile_are_divided_among_steps_and_calls() -> None:
    spin = "at::cuda::(anonymous namespace)::spin_kernel(long)"
    names = (
        ["warm-up", spin, "a", "b", "Memcpy DtoD", "a", "b", spin, "c", "Memset", "c", spin]
    )  # fmt: skip
    events = [(float(n), name, 10.0 + n) for n, name in enumerate(names)]
    assert split_kernels(events[::-1], 3, 2) == [
        [[12.0, 13.0], [15.0, 16.0]],
        [[18.0], [20.0]],
        [[], []],
    ]
    assert split_kernels([], 1, 2) == [[[], []]]
