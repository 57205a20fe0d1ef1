"""Ultravox by the code of its own repository, fed by modegap's processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modegap.engine.models.composite import CompositeConfig
from modegap.engine.models.hooks import attached
from modegap.engine.models.points import HookPoint

from .model import tokens

# The repository calls its tower's and its projector's `forward`, which runs no hooks; this part it calls.
_STACKING = "model.multi_modal_projector._pad_and_stack"


class RemoteUltravox(nn.Module):
    """The repository's model behind the arguments of `Ultravox.forward`.

    Its code computes one sample at a time as it should; in a batch, what its encoder puts out beyond the end of a
    sound depends on the other samples and enters that sound's last token. Those frames are set to zero here, as
    they are for one sample alone, in front of the second convolution and of the projector.

    Args:
        model: the repository's `UltravoxModel`.
        config: see there.
        stack: encoder frames a token.
        context: mel frames of a chunk.
    """

    model: Any

    def __init__(self, model: nn.Module, config: CompositeConfig, stack: int, context: int) -> None:
        """Keeps the model as it is."""
        super().__init__()
        self.model = model
        self.config = config
        self.stack = stack
        self.context = context
        self.frames = nn.Identity()  # the encoder's frames pass it a sample a row: a place for hooks
        self.hook_points = {
            "encoder_output": ("frames", "the encoder's frames, before they are stacked"),
            "adapter_output": (
                f"{self._decoder_path()}:placeholders",
                "what the decoder is fed at the placeholders: the projector also puts out padding",
            ),
        }

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        found: nn.Module = self.model.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        found: nn.Module = self.model.get_output_embeddings()
        return found

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        found: nn.Module = self.model.get_decoder()
        return found

    def _decoder_path(self) -> str:
        decoder = self.get_decoder()
        found: dict[nn.Module, str] = {module: path for path, module in self.named_modules()}
        return found[decoder]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As `Ultravox.forward`; chunks, their lengths and their places are worked out here."""
        options = {**options, "attention_mask": attention_mask, "position_ids": position_ids}
        media = input_ids == self.config.media_token_id
        # the placeholder may have no row in the embedding table; what it embeds to is overwritten
        plain = input_ids.masked_fill(media, 0)
        if input_features is None or feature_attention_mask is None:
            return self.model(input_ids=plain, **options)
        lengths = feature_attention_mask.sum(dim=1)
        chunks = [
            (sample, start)
            for sample, length in enumerate(lengths.tolist())
            for start in range(0, length, self.context)
        ]
        own = torch.tensor(
            [min(int(lengths[i]) - at, self.context) for i, at in chunks], device=lengths.device
        )
        whole = torch.tensor([int(lengths[i]) > self.context for i, _ in chunks], device=lengths.device)
        values = torch.stack([input_features[i, :, at : at + self.context] for i, at in chunks])
        count = tokens(own, self.stack)
        following = media.int().argmax(dim=1).tolist()
        starts = []
        for (sample, _), length in zip(chunks, count.tolist(), strict=True):
            starts.append(following[sample])
            following[sample] += length
        per_sample = torch.bincount(torch.tensor([i for i, _ in chunks]), minlength=len(lengths))
        extent = torch.where(whole, values.shape[2], own)
        with attached(self, self._trim(extent, chunks)):
            return self.model(
                input_ids=plain,
                audio_values=values,
                audio_lens=own,
                audio_token_len=count,
                audio_token_start_idx=torch.tensor(starts, device=lengths.device),
                audio_batch_size=per_sample.to(lengths.device),
                **options,
            )

    def _trim(self, extent: torch.Tensor, chunks: list[tuple[int, int]]) -> list[tuple[HookPoint, Any]]:
        sample = torch.tensor([i for i, _ in chunks])
        piece = torch.tensor([at // self.context for _, at in chunks])
        shape = (int(sample.max()) + 1, int(piece.max()) + 1)

        def mel(x: torch.Tensor) -> torch.Tensor:
            inside = torch.arange(x.shape[2], device=x.device) < extent.to(x.device)[:, None]
            return x * inside[:, None].to(x.dtype)

        def frames(x: torch.Tensor) -> torch.Tensor:
            inside = torch.arange(x.shape[1], device=x.device) < ((extent.to(x.device) + 1) // 2)[:, None]
            x = x * inside[..., None].to(x.dtype)
            whole = x.new_zeros((*shape, *x.shape[1:])).index_put((sample, piece), x)
            return self.frames(whole.flatten(1, 2)).unflatten(1, (shape[1], -1))[sample, piece]  # type: ignore[no-any-return]

        before = HookPoint("conv2_input", "model.audio_tower.conv2", "input", "encoder", "trimmed")
        after = HookPoint("projector_input", _STACKING, "input", "encoder", "trimmed")
        return [(before, mel), (after, frames)]
