"""A tiny random LLaVA as transformers saves it: processor, tokenizer and weights, made offline."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = [
    "a",
    "red",
    "cup",
    "on",
    "the",
    "table",
    "is",
    "blurry",
    "sky",
    "with",
    "two",
    "cats",
    ".",
    "in",
    "focus",
    "and",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
QUESTION = ["USER", ":", "ASSISTANT", "Describe", "this", "image", "detail", "What", "there"]


def write_tiny_llava(folder: Path, *, seed: int = 0, chat_template: bool = True) -> Path:
    """Write the folder; its answers are words of :data:`WORDS` in an order that the image decides.

    Args:
        folder: is made.
        seed: of the weights.
        chat_template: whether the processor brings one.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *WORDS, *QUESTION])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",  # as some checkpoints are saved; answers must come right all the same
    )
    template = (
        "{% for message in messages %}USER: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template if chat_template else None,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
            ),
            text_config=LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=3,
            ),
            image_token_index=4,
            vision_feature_layer=-2,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # large enough that the image decides the answer
            if parameter.ndim > 1:
                gain = 4.0 if "v_proj" in name or "o_proj" in name or "projector" in name else 1.5
                parameter.copy_(torch.randn_like(parameter) * gain / parameter[0].numel() ** 0.5)
        # Never a special token or a word of the question.
        head = model.get_output_embeddings().weight
        answers = slice(len(SPECIAL), len(SPECIAL) + len(WORDS))
        kept = head[answers].clone()
        head.zero_()
        head[answers] = kept
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_tiny_llava_next(folder: Path, base: Path) -> Path:
    """Write a LLaVA-NeXT with the weights of a tiny LLaVA: the larger an image, the more tokens it takes.

    Args:
        folder: is made.
        base: that :func:`write_tiny_llava` wrote.
    """
    from transformers import (
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        LlavaProcessor,
    )

    llava, processor = LlavaForConditionalGeneration.from_pretrained(base), LlavaProcessor.from_pretrained(base)
    grid = [[16, 32], [32, 16], [32, 32], [16, 48], [48, 16]]
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=llava.config.vision_config,
            text_config=llava.config.text_config,
            image_token_index=4,
            image_grid_pinpoints=grid,
            vision_feature_layer=-2,
        )
    )
    missing, unexpected = model.load_state_dict(llava.state_dict(), strict=False)
    assert missing == ["model.image_newline"] and not unexpected
    model.save_pretrained(folder)
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=grid
        ),
        tokenizer=processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    ).save_pretrained(folder)
    return folder
