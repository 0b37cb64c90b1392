from ecoflap.models.core.layer_names import skip_patterns


def test_patterns_are_short_and_match_nothing_else() -> None:
    names = [
        f"layers.{block}.{part}.weight"
        for block in range(12)
        for part in ("mixer.in_proj", "mixer.dt_proj", "mlp.proj")
    ]
    assert skip_patterns([name for name in names if "dt_proj" in name], names) == ["dt_proj"]
    assert skip_patterns([name for name in names if "mlp" in name], names) == ["mlp"]
    assert skip_patterns(["layers.1.mlp.proj.weight"], names) == ["layers.1.mlp"]
    assert skip_patterns(["a.b.weight"], ["a.b.weight", "x.a.b.weight"]) == ["^a.b.weight$"]
