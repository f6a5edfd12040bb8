"""`batchgen.run_batch` and `batchgen.iter_batch`: a batch job from Python. Torch loads when one
runs.

    result = batchgen.run_batch("models/sums-moe", [{"prompt": "Add aa48 ab21."}], max_tokens=40)
    print(result.rows[0].text, result.counts)
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from batchgen.errors import Unfinished, UserError
from batchgen.option_names import named_as_options
from batchgen.paths import aside

if TYPE_CHECKING:
    from batchgen.exec.job import ExecJob
    from batchgen.exec.run import Ended

MOST_HELD = 256
"""Rows that wait for a listener of `iter_batch`; then the job waits for him."""
LOOK_S = 0.1

Rows = str | Path | Iterable[Mapping[str, Any]]


class BatchOptions(TypedDict, total=False):
    """What may be said of a job, with the names and defaults of `batchgen exec`; `overrides` are
    those of `--set`, `folder` is its `--job-dir`. `max_errors`: rows, or a part such as "5%";
    `shard`: "I/N" or (I, N); `input_format` is of rows that are a file."""

    policy: str
    overrides: Mapping[str, str]
    dtype: str
    exact: bool
    device: str
    max_tokens: int
    temperature: float | None
    seed: int
    limit: int | None
    hbm_pages: int | None
    host_pages: int | None
    threads: int | None
    force: bool
    body: str | None
    folder: str | Path | None
    resume: str
    order: str
    strict: bool
    input_format: str
    prompt_column: str | None
    prompt_template: str | None
    chat: bool
    system: str | None
    served_model_name: str | Sequence[str]
    shard: str | tuple[int, int] | None
    row_timeout: float | None
    max_errors: int | str | None
    error_file: str | Path | None
    manifest: str | Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row. `texts`: its answers, one per sample, none of a row in error; `finish_reasons` are
    OpenAI's. `code` and `message` say what was wrong, "" otherwise. `raw`: the output object."""

    index: int
    custom_id: str | None
    texts: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    code: str = ""
    message: str = ""
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def ok(self) -> bool:
        return not self.code

    @property
    def text(self) -> str:
        """The first answer. Raises UserError for a row in error."""
        if not self.texts:
            raise UserError(
                f"row {self.index} has no answer: {self.code}: {self.message}", remedy="ask `ok`"
            )
        return self.texts[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """`rows` in input order; `counts`: {"rows", "done", "failed"}; `manifest`: what was answered,
    counted and hashed; `summary`: the report's numbers, None if nothing was left to run."""

    rows: tuple[RowResult, ...]
    counts: Mapping[str, int]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any] | None


def run_batch(
    model: str | Path,
    rows: Rows,
    output: str | Path | None = None,
    **options: Unpack[BatchOptions],
) -> BatchResult:
    """Answer all rows: a file that `batchgen exec` reads, or objects as it has them on its lines.

    With `output` the job is durable, as on the command line: killed, it goes on with
    resume="always"; a name that ends with .parquet makes it a table. Raises UserError for what
    cannot run, Unfinished where the disk refuses; a row that fails is a `RowResult` with its code.
    """
    with _job(model, rows, output, options) as job:
        found: list[RowResult] = []
        ended = _execute(job, on_line=lambda line: found.append(row_result(line)))
        ordered = sorted(found, key=lambda row: row.index)
    return BatchResult(
        rows=tuple(ordered),
        counts={name: int(ended.manifest[name]) for name in ("rows", "done", "failed")},
        manifest=ended.manifest,
        summary=_summary(ended),
    )


def iter_batch(
    model: str | Path,
    rows: Rows,
    output: str | Path | None = None,
    **options: Unpack[BatchOptions],
) -> RowStream:
    """Rows as they finish, in any order, each once; those that an earlier process answered come
    first. The job runs in a thread, and waits where its listener is slower than it, by more than
    256 rows. Who stops listening stops it: with `output` it can go on later."""
    return RowStream(lambda: _job(model, rows, output, options))


class RowStream:
    """What `iter_batch` gives: an asynchronous iterator of `RowResult`, for one listener.

    `aclose()` stops the job and waits for it, as does a listener that is cancelled. One that is
    dropped (`break` out of the loop) waits where it stands, the event loop too: no generator, since
    Python leaves the end of a dropped one to a loop that may be closed by then.
    """

    def __init__(self, job: Callable[[], AbstractContextManager[ExecJob]]) -> None:
        self._job = job
        self._stop = threading.Event()
        self._finished: asyncio.Queue[RowResult | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(MOST_HELD)  # rows that may still wait there
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> RowStream:
        return self

    async def __anext__(self) -> RowResult:
        if self._thread is None and not self._stop.is_set():
            self._begin()
        if self._stop.is_set():
            raise StopAsyncIteration
        try:
            item = await self._finished.get()
            if isinstance(item, BaseException):
                raise item
        except BaseException:
            await self.aclose()
            raise
        if item is None:
            await self.aclose()
            raise StopAsyncIteration
        self._room.release()
        return item

    async def aclose(self) -> None:
        """Stops the job; returns when its files are closed. It can be called again."""
        self._stop.set()
        again: asyncio.CancelledError | None = None
        while self._thread is not None and self._thread.is_alive():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError as error:  # once more: the thread has files all the same
                again = error
        if again is not None:
            raise again

    def __del__(self) -> None:
        self._stop.set()
        # The thread itself may be the one that collects a cycle with this in it.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _begin(self) -> None:
        # The thread must not hold this object, else nobody could drop it.
        loop, finished, stop = asyncio.get_running_loop(), self._finished, self._stop
        room = self._room
        opened = ExitStack()
        job = opened.enter_context(self._job())

        def tell(value: RowResult | BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(finished.put_nowait, value)

        def is_left() -> bool:
            return stop.is_set() or loop.is_closed()

        def told(line: bytes) -> None:
            """Its answer is in the journal: where nobody listens any more it may be dropped."""
            while not room.acquire(timeout=LOOK_S):
                if is_left():
                    return
            tell(row_result(line))

        def run() -> None:
            try:
                with opened:
                    _execute(job, on_line=told, stopping=is_left)
            except BaseException as error:
                tell(error)
            else:
                tell(None)

        self._thread = threading.Thread(target=run, name="batchgen")
        self._thread.start()


def row_result(line: bytes | Mapping[str, Any]) -> RowResult:
    """What an output line says."""
    value: Mapping[str, Any] = json.loads(line) if isinstance(line, bytes) else line
    index, custom_id = int(value["id"].rpartition("_")[2]), value["custom_id"]
    if value["error"] is not None:
        error = value["error"]
        return RowResult(
            index=index,
            custom_id=custom_id,
            code=error["code"],
            message=error["message"],
            raw=value,
        )
    body = value["response"]["body"]
    usage = body["usage"]
    if body["object"] == "response":
        texts = [one["content"][0]["text"] for one in body["output"]]
        reasons = ["stop" if one["status"] == "completed" else "length" for one in body["output"]]
        prompt, completion = usage["input_tokens"], usage["output_tokens"]
    else:
        choices = body["choices"]
        texts = [one["message"]["content"] if "message" in one else one["text"] for one in choices]
        reasons = [one["finish_reason"] for one in choices]
        prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    return RowResult(
        index=index,
        custom_id=custom_id,
        texts=tuple(texts),
        finish_reasons=tuple(reasons),
        prompt_tokens=prompt,
        completion_tokens=completion,
        raw=value,
    )


def _execute(
    job: ExecJob,
    *,
    on_line: Callable[[bytes], None] | None = None,
    stopping: Callable[[], bool] | None = None,
) -> Ended:
    from batchgen.exec.run import execute

    return execute(job, on_line=on_line, stopping=stopping)


@contextmanager
def _job(
    model: str | Path, rows: Rows, output: str | Path | None, options: BatchOptions
) -> Iterator[ExecJob]:
    """The job over files; its errors, and those while it runs, name options of Python."""
    with (
        named_as_options(BatchOptions.__annotations__),
        _over_files(model, rows, output, options) as job,
    ):
        yield job


@contextmanager
def _over_files(
    model: str | Path, rows: Rows, output: str | Path | None, options: BatchOptions
) -> Iterator[ExecJob]:
    """Objects are written to a temporary file."""
    try:
        from batchgen.exec.devices import usual_dtype
        from batchgen.exec.job import ExecJob
        from batchgen.job.final import form_of_name
        from batchgen.job.targets import check_targets
    except ModuleNotFoundError as error:
        raise UserError(
            f"run_batch needs {error.name}", remedy="pip install 'batchgen[exec]'"
        ) from None
    unknown = sorted(set(options) - set(BatchOptions.__annotations__))
    if unknown:
        raise UserError(
            f"run_batch has no option '{unknown[0]}'",
            remedy=f"choose among {', '.join(sorted(BatchOptions.__annotations__))}",
        )
    more = _values(options)
    more.setdefault("dtype", usual_dtype(more.get("device", "cpu")))
    with aside("rows") as folder:
        path = Path(rows) if isinstance(rows, str | Path) else _written(rows, folder)
        answers = folder / "answers.jsonl" if output is None else Path(output)
        more["output_form"] = form_of_name(answers)
        check_targets(
            answers,
            resume=more.get("resume", "never"),
            folder=more.get("folder"),
            force=more.get("force", False),
            error_file=more.get("error_file"),
            manifest=more.get("manifest"),
        )
        job = ExecJob(model=Path(model), input=path, output=answers, **more)
        try:
            yield job
        except Unfinished as error:
            if output is None and job.folder is None:  # the folder is gone when the caller hears it
                what = error.message.partition("; all that")[0].partition(", in ")[0]
                raise Unfinished(
                    f"{what}; nothing is kept",
                    remedy="give output or folder to be able to go on",
                    code=error.code,
                ) from None
            raise


def _values(options: BatchOptions) -> dict[str, Any]:
    """Options as a job has them. Raises UserError for those that cannot be."""
    from batchgen.job.error_limit import parse_error_limit
    from batchgen.job.shape import make_shape
    from batchgen.job.shard import parse_shard

    more: dict[str, Any] = dict(options)
    more["overrides"] = tuple(dict(more.get("overrides", {})).items())
    for name in ("folder", "error_file", "manifest"):
        if more.get(name) is not None:
            more[name] = Path(more[name])
    more["shape"] = make_shape(
        more.pop("prompt_column", None),
        more.pop("prompt_template", None),
        chat=more.pop("chat", False),
        system=more.pop("system", None),
    )
    more["form"] = more.pop("input_format", "auto")
    names = more.pop("served_model_name", ())
    more["models"] = (names,) if isinstance(names, str) else tuple(names)
    more["shard"] = parse_shard(more.get("shard"))
    more["row_timeout_s"] = more.pop("row_timeout", None)
    most = more.get("max_errors")
    more["max_errors"] = parse_error_limit(None if most is None else str(most), "row")
    return more


def _written(rows: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            try:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            except (TypeError, ValueError, RecursionError) as error:
                raise UserError(
                    f"row {number} is no JSON object: {error!s:.100}", remedy="mend the row"
                ) from None
    return path


def _summary(ended: Ended) -> Mapping[str, Any] | None:
    if ended.record is None:
        return None
    from batchgen.report.metrics import summary

    return summary(ended.record)
