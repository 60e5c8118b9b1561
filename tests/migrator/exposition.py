"""Metrics as Prometheus reads them: the only door to prometheus_client, whose parser judges the form."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def read(text: str) -> dict[tuple[str, str], float]:
    """(metric, outcome or "") -> value; every metric has to be described, and to be a gauge."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge", family
        assert family.documentation, family
        for sample in family.samples:
            found[sample.name, sample.labels.get("outcome", "")] = sample.value
    return found


def labels(text: str) -> list[dict[str, str]]:
    """The labels of each sample."""
    return [sample.labels for family in text_string_to_metric_families(text) for sample in family.samples]
