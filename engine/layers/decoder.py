"""`LayerRunner`: the decoder's own forward with one real layer; the others let everything pass.

The decoder itself makes masks, positions and rotary embeddings and calls the layer as it always does, so that
nothing about an architecture is known here but where its layers are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel


class Stop(BaseException):
    """Ends a forward that has given what was wanted; no `except Exception` on the way may swallow it."""


class LayerRunner:
    """Runs parts of a decoder whose layers may have no weights.

    Args:
        loaded: a model with a decoder that was found.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Looks up decoder and layers."""
        assert loaded.structure is not None
        self._loaded = loaded
        self.path = loaded.structure.decoder
        self.decoder: nn.Module = loaded.model.get_submodule(loaded.structure.decoder)
        self.layers: list[nn.Module] = list(loaded.model.get_submodule(loaded.structure.layers).children())
        note = str(inspect.signature(type(self.layers[0]).forward).return_annotation)
        self._tuples = "uple" in note  # transformers before 4.54: layers put out tuples
        self._hidden: torch.Tensor | None = None

    def enter(self, run: Any) -> tuple[dict[str, Any], torch.Tensor]:
        """Runs a whole-model forward up to the first layer.

        Args:
            run: makes the forward.

        Returns:
            the decoder's keyword arguments, and what enters the first layer [B, T, d].

        Raises:
            EngineError: the decoder did not run, or was called with positional arguments other than tokens.
        """
        seen: dict[str, Any] = {}
        names = [
            parameter.name
            for parameter in inspect.signature(self.decoder.forward).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]

        def called(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.update(dict(zip(names, args, strict=False)), **kwargs)

        def entered(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hidden = args[0] if args else kwargs["hidden_states"]
            raise Stop

        handles = [
            self.decoder.register_forward_pre_hook(called, with_kwargs=True),
            self.layers[0].register_forward_pre_hook(entered, with_kwargs=True),
        ]
        try:
            run()
        except Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        hidden, self._hidden = self._hidden, None
        if hidden is None or not seen:
            raise EngineError(
                f"{self.path} did not run in the forward; layer streaming cannot split this model"
            )
        return seen, hidden

    def layer(self, k: int, kwargs: dict[str, Any], hidden: torch.Tensor) -> torch.Tensor | None:
        """Runs layer k on what enters it, and everything up to the next layer.

        Args:
            k: the layer; its weights are in place.
            kwargs: the decoder's keyword arguments, as `enter` gave them.
            hidden: [B, T, d].

        Returns:
            what enters layer k + 1, [B, T, d]; None after the last layer, which the decoder's end follows.
        """

        def begin(_: nn.Module, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
            return ((hidden, *args[1:]), kw) if args else (args, {**kw, "hidden_states": hidden})

        def end(_: nn.Module, args: tuple[Any, ...], kw: dict[str, Any]) -> None:
            self._hidden = args[0] if args else kw["hidden_states"]
            raise Stop

        with self._passing(k):
            # in front of all other hooks, so that those on the layer's input see what really enters it
            handles = [self.layers[k].register_forward_pre_hook(begin, with_kwargs=True, prepend=True)]
            if k + 1 < len(self.layers):
                handles.append(
                    self.layers[k + 1].register_forward_pre_hook(end, with_kwargs=True, prepend=True)
                )
            try:
                self.decoder(**{**kwargs, "inputs_embeds": hidden, "use_cache": False})
            except Stop:
                pass
            finally:
                for handle in handles:
                    handle.remove()
        after, self._hidden = self._hidden, None
        return after

    @contextmanager
    def _passing(self, k: int) -> Iterator[None]:
        """All layers but k hand on what they get."""

        def through(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self._tuples else hidden_states

        changed = [layer for i, layer in enumerate(self.layers) if i != k]
        for layer in changed:
            layer.forward = through
        try:
            yield
        finally:
            for layer in changed:
                del layer.forward
