"""From the errors of the Hub and of transformers to one line that says what to do."""

from __future__ import annotations

# Remedies by the class names of huggingface_hub's errors and by fragments of transformers' messages, most
# telling first.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("GatedRepoError", "gated repo"),
        "{id} is gated: accept its licence at https://huggingface.co/{id}, then log in with `hf auth "
        "login` or set HF_TOKEN",
    ),
    (
        ("RevisionNotFoundError", "is not a valid git identifier"),
        "{id} has no revision {revision!r}: name a branch, tag or commit that exists",
    ),
    (
        ("trust_remote_code",),
        "{id} runs code of its own: read that code, then pass trust_remote_code=True",
    ),
    (
        (
            "OfflineModeIsEnabled",
            "LocalEntryNotFoundError",
            "ConnectError",
            "ConnectionError",
            "couldn't connect",
        ),
        "cannot reach huggingface.co and {id} is not in the local cache: connect, download it elsewhere with "
        "`hf download {id}`, or give the path of a folder",
    ),
    (
        (
            "RepositoryNotFoundError",
            "HFValidationError",
            "is not a valid model identifier",
            "not a local folder",
        ),
        "no model {id!r}: check the spelling, log in with `hf auth login` if it is private, or give a "
        "folder's path",
    ),
    (
        ("RemoteEntryNotFoundError", "EntryNotFoundError", "does not appear to have a file named"),
        "{id} lacks a file of its published layout ({reason}): check the id, or download the model again",
    ),
    (
        ("requires `accelerate`", "Using `device_map`", "low_cpu_mem_usage"),
        "device_map needs accelerate: pip install accelerate",
    ),
    (
        ("sentencepiece", "protobuf library", "tiktoken"),
        "the tokenizer of {id} has to be converted: pip install sentencepiece protobuf",
    ),
    (
        ("does not recognize this architecture", "Unrecognized model"),
        "{id} is of a kind that the installed transformers does not know: upgrade transformers, or load it "
        "yourself "
        "and use adopt(model, processor)",
    ),
)


def remedy(error: BaseException, name: str, revision: str | None) -> str:
    """One line for an error met while loading `name`: what is wrong and what to do."""
    seen: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(seen) < 20:
        seen.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    everything = "\n".join(seen).lower()
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    for signs, text in _REMEDIES:
        if any(sign.lower() in everything for sign in signs):
            return text.format(id=name, revision=revision, reason=first)
    return f"cannot load {name}: {first}"
