"""Names and shapes of all tensors of a VideoLLaMA3 model, and their names in each checkpoint layout.

The canonical names are transformers' (`model.vision_model.…`, `model.projector.…`, `model.language_model.…`,
`lm_head.weight`). `canonical_name` maps a stored name to its canonical one, `stored_name` the other way. A checkpoint
of the vision encoder alone stores it without a prefix, whoever wrote it.
"""

from __future__ import annotations

from .config import Layout, ModelConfig, TextConfig, VisionConfig

EMBEDDINGS = "model.language_model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
VISION = "model.vision_model."
PROJECTOR = "model.projector."
DECODER = "model.language_model."

Shape = tuple[int, ...]

_TRANSFORMERS_PARTS = ("vision_model.", "projector.", "language_model.")
_VISION_PARTS = ("embeddings.", "encoder.", "post_layernorm.")
_DECODER_PARTS = ("embed_tokens.", "layers.", "norm.")
# Buffers that some versions of the classes saved; the configuration determines them.
_DERIVED = ("inv_freq", "position_ids")


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Canonical name -> shape of all tensors, in the order in which they are used; `lm_head.weight` included."""
    if not config.has_decoder:
        return vision_shapes(config.vision)
    return {
        **vision_shapes(config.vision),
        **projector_shapes(config),
        EMBEDDINGS: (config.text.vocab_size, config.text.hidden_size),
        **{
            f"{DECODER}layers.{i}.{name}": shape
            for i in range(config.text.num_layers)
            for name, shape in decoder_layer_shapes(config.text).items()
        },
        f"{DECODER}norm.weight": (config.text.hidden_size,),
        LM_HEAD: (config.text.vocab_size, config.text.hidden_size),
    }


def vision_shapes(vision: VisionConfig) -> dict[str, Shape]:
    width, patch = vision.hidden_size, vision.patch_size
    layer: dict[str, Shape] = {}
    for norm in ("layer_norm1", "layer_norm2"):
        layer |= _with_bias(norm, (width,))
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer |= _with_bias(f"self_attn.{part}", (width, width))
    layer |= _with_bias("mlp.fc1", (vision.intermediate_size, width))
    layer |= _with_bias("mlp.fc2", (width, vision.intermediate_size))
    shapes = _with_bias("embeddings.patch_embedding", (width, vision.num_channels, patch, patch))
    for i in range(vision.num_layers):
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= _with_bias("post_layernorm", (width,))
    return {VISION + name: shape for name, shape in shapes.items()}


def projector_shapes(config: ModelConfig) -> dict[str, Shape]:
    width = config.text.hidden_size
    return {
        **_with_bias(f"{PROJECTOR}readout.0", (width, config.vision.hidden_size)),
        **_with_bias(f"{PROJECTOR}readout.2", (width, width)),
    }


def decoder_layer_shapes(text: TextConfig) -> dict[str, Shape]:
    """Tensors of one decoder layer, named within the layer."""
    width, q, kv = text.hidden_size, text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    return {
        "input_layernorm.weight": (width,),
        **_with_bias("self_attn.q_proj", (q, width)),
        **_with_bias("self_attn.k_proj", (kv, width)),
        **_with_bias("self_attn.v_proj", (kv, width)),
        "self_attn.o_proj.weight": (width, q),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (text.intermediate_size, width),
        "mlp.up_proj.weight": (text.intermediate_size, width),
        "mlp.down_proj.weight": (width, text.intermediate_size),
    }


def canonical_name(name: str, layout: Layout) -> str:
    """The canonical name of a stored tensor; a name of no known pattern is returned unchanged."""
    if name.startswith(_VISION_PARTS):
        return VISION + name
    if layout == "transformers":
        # The model class without its language head saves without `model.`, and from_pretrained accepts that.
        return f"model.{name}" if name.startswith(_TRANSFORMERS_PARTS) else name
    for prefix, part in (
        ("model.vision_encoder.vision_encoder.", VISION),  # what the authors' trainer saves
        ("model.vision_encoder.", VISION),
        ("vision_encoder.", VISION),  # cut out of a whole checkpoint, or wrapped by a trainer of the encoder
        ("model.mm_projector.", PROJECTOR),
    ):
        if name.startswith(prefix):
            return part + name.removeprefix(prefix)
    inner = name.removeprefix("model.")
    return DECODER + inner if inner != name and inner.startswith(_DECODER_PARTS) else name


def stored_name(name: str, layout: Layout) -> str:
    """The name in `layout` of the tensor with this canonical name."""
    if layout == "transformers":
        return name
    for part, prefix in (
        (VISION, "model.vision_encoder."),
        (PROJECTOR, "model.mm_projector."),
        (DECODER, "model."),
    ):
        if name.startswith(part):
            return prefix + name.removeprefix(part)
    return name


def is_derived(name: str) -> bool:
    """True for buffers that the configuration determines, which are safely ignored."""
    return name.endswith(_DERIVED)


def _with_bias(name: str, weight: Shape) -> dict[str, Shape]:
    """A layer's weight and its bias, which has the length of the weight's first axis."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
