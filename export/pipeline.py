"""Checkpoint in, bundle out: the stages of an export, in order, each measured against the torch modules.

The manifest is written last, after every file it lists; `staging.py` ensures that a bundle appears whole or not at all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.values import check_values
from vl3edge.runtime.bundle.bundle import MANIFEST_NAME, Bundle, hash_file
from vl3edge.runtime.bundle.manifest import Manifest

from .decoder_stage import calibration_data, quantized_decoder, write_decoder, write_prefill_graph
from .disk_estimate import estimated_bytes
from .graphs.embeddings import export_embeddings
from .kernels.stage import require_kernels, write_kernels
from .manifest import list_files, make_manifest
from .options import ExportOptions
from .parity import Difference
from .progress import Progress
from .prompt_files import try_chat_template, write_prompt_files
from .quantize import discard_work
from .staging import check_target, staged_folder
from .tensor_source import Float32Source
from .tensorrt import require_tensorrt, write_tensorrt
from .vision_stage import vision_calibration, write_vision
from .vocabulary.head_vocabulary import HeadVocabulary, head_vocabulary


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: its folder and its manifest."""

    folder: Path
    manifest: Manifest


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    options: ExportOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ExportReport:
    """Exports a checkpoint to the folder `target`.

    progress: called with (stage, steps done, steps in all).
    Raises ExportError (target exists, disk full, a chat template that fails, …), CheckpointError (unreadable or
    non-finite weights), QuantError (a plan that does not fit the decoder), MediaError (calibration media).
    """
    options = options or ExportOptions()
    options.check(checkpoint.config)
    check_target(target.resolve(), options.force)
    vocabulary = head_vocabulary(checkpoint, options.vocabulary)
    draft = make_manifest(checkpoint.config, options, checkpoint.commit, vocabulary)
    draft = replace(draft, adapters=checkpoint.adapters)
    if checkpoint.config.has_decoder:
        try_chat_template(checkpoint, draft)
    check_values(checkpoint, options.largest_storable)
    progress("weights read through", 1, 1)
    compilers = require_tensorrt(options.targets)
    if options.compiles_kernels and checkpoint.config.has_decoder:
        require_kernels()
    with staged_folder(target, options.force, estimated_bytes(checkpoint, options)) as folder:
        draft = replace(draft, versions=draft.versions | compilers)
        calibration = vision_calibration(checkpoint, options, draft, progress)
        measured, encoder = write_vision(checkpoint, folder, options, calibration, progress)
        measured |= write_tensorrt(checkpoint, Float32Source(checkpoint), folder, draft, progress, calibration)
        if checkpoint.config.has_decoder:
            draft, differences = _write_language(checkpoint, folder, draft, options, vocabulary, target, progress)
            measured |= differences
        manifest = replace(
            list_files(draft, folder, hash_file),
            measured={stage: asdict(difference) for stage, difference in measured.items()},
            vision_quantization=encoder,
        )
        (folder / MANIFEST_NAME).write_text(manifest.to_text(), encoding="utf-8")
    discard_work(target)
    return ExportReport(target, manifest)


def _write_language(
    checkpoint: Checkpoint,
    folder: Path,
    draft: Manifest,
    options: ExportOptions,
    vocabulary: HeadVocabulary,
    target: Path,
    progress: Progress,
) -> tuple[Manifest, dict[str, Difference]]:
    """What a vision encoder alone does not have: the files of prompts, embeddings, the decoder and its kernels.

    folder: has the vision path, with which quantization calibrates. Returns the manifest with what it then knows, and
    the differences from torch.
    """
    write_prompt_files(checkpoint, folder)
    vocabulary.write(folder)
    tied = checkpoint.config.text.tie_word_embeddings
    table = export_embeddings(checkpoint, folder, options.stored_precision, vocabulary.ids if tied else None)
    progress("embeddings", 1, 1)
    engines = Bundle(folder, list_files(draft, folder))
    data = calibration_data(checkpoint, engines, options, progress)
    quantized = quantized_decoder(checkpoint, data, options, target, progress)
    prefill = write_prefill_graph(checkpoint, data, folder, options, quantized, progress)
    measured = write_decoder(checkpoint, folder, options, table, quantized, progress, vocabulary.ids)
    if options.compiles_kernels:
        write_kernels(folder, draft.text, progress)
    report = {"method": "none"} if quantized is None else quantized.report
    return replace(draft, quantization=report, prefill_quantization=prefill), measured
