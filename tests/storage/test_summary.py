"""A store says in one line, or as a table, what it holds; xarray opens all of it without a word."""

import xarray
from scenarios import accumulate, capture

from dalr_stream.storage.records.moments import moments_path
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore


def test_one_line_names_the_store_its_network_and_each_domain(tmp_path):
    capture(tmp_path)
    capture(tmp_path, "source")
    before = repr(ActivationStore(tmp_path))
    accumulate(tmp_path)
    store = ActivationStore(tmp_path)
    layers, samples = len(store.manifest.domains["target"].layers), store.manifest.domains["target"].samples
    assert before.startswith(f"<store '{tmp_path}' of network {store.manifest.network.fingerprint[:12]}: ")
    assert f"target ({samples:,} samples, {layers} layers, 0 with moments)" in before
    assert f"target ({samples:,} samples, {layers} layers, 1 with moments)" in repr(store)
    assert "source (" in before
    assert "\n" not in repr(store)


def test_the_table_has_a_line_a_layer_and_escapes_names(tmp_path):
    root = tmp_path / "a<b"
    capture(root)
    accumulate(root)
    store = ActivationStore(root)
    page = store._repr_html_()
    assert page.count("<tr>") == 1 + len(store.manifest.domains["target"].layers)
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "captured" in page
    delete_activations(root)
    assert "none kept" in ActivationStore(root)._repr_html_()


def test_damaged_moments_count_as_none_and_the_line_still_prints(tmp_path):
    capture(tmp_path)
    accumulate(tmp_path)
    assert "1 with moments" in repr(ActivationStore(tmp_path))
    (moments_path(tmp_path, "target", "0", "training") / "zarr.json").write_text("{")
    assert "0 with moments" in repr(ActivationStore(tmp_path))


def test_xarray_opens_moments_by_names(tmp_path):
    """Warnings are errors in this suite."""
    capture(tmp_path)
    accumulate(tmp_path)
    with xarray.open_zarr(moments_path(tmp_path, "target", "0", "training"), consolidated=False) as data:
        assert data["scatter"].dims == ("feature", "feature_2")
        assert data.attrs["count"] > 0
