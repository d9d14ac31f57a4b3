"""The keys of an evaluation in results.json."""

from typing import Any, NotRequired, TypedDict

ByOutput = dict[str, Any]


class Results(TypedDict):
  """The keys; docs/results_schema.md describes their values.

  The version of this schema is `runtime.documents.SCHEMA_VERSION`, which every
  document carries.
  """

  outputs: list[dict[str, str | None]]
  final_output: str
  accuracy: dict[str, dict[str, float]]
  worst_case: dict[str, float]
  worst_case_images: dict[str, int]
  per_class: ByOutput
  confusion: ByOutput
  examples: dict[str, list[int]]
  autoattack: NotRequired[ByOutput]
  best_known: NotRequired[ByOutput]
  randomized: NotRequired[dict[str, Any]]
  sweep: NotRequired[ByOutput]
  loss_by_steps: NotRequired[ByOutput]
  heads: NotRequired[dict[str, Any]]
  audit: NotRequired[dict[str, Any]]
