import threading

import pytest
import torch

from csrtrain.augment.chunks import for_each_chunk


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "size"), [(0, 4), (1, 4), (4, 4), (11, 4), (3, 1)])
def test_chunks_cover_the_batch_once(threads, n, size):
    seen = []
    for_each_chunk(lambda chunk: seen.append((chunk.start, chunk.stop)), n, size)
    assert all(0 < stop - start <= size for start, stop in seen)
    assert [row for start, stop in sorted(seen) for row in range(start, stop)] == list(range(n))


def test_operations_run_in_one_thread_and_torch_keeps_its_own(threads):
    inside = []
    for_each_chunk(lambda chunk: inside.append((threading.get_ident(), torch.get_num_threads())), 30, 1)
    assert {number for _, number in inside} == {1}
    assert torch.get_num_threads() == threads
    assert threads == 1 or threading.get_ident() not in {thread for thread, _ in inside}


def test_errors_are_raised(threads):
    def fail(chunk):
        raise ValueError(f"chunk {chunk.start}")

    with pytest.raises(ValueError, match="chunk 0"):
        for_each_chunk(fail, 5, 2)
