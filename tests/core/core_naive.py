"""An independent scheduler, pass by pass, with its own data structures: the oracle of the presets.

It is written from the description of the policies (first come first served, chunked or whole
prompts within the token budget, optimistic or worst-case admission, the newest row recomputed,
padding and dead rows in a static batch), shares no code with the core, and uses the toy cost only
through its coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

from core_cases import Case

from batchgen.check.toy import ToyCost


@dataclass
class Request:
    index: int
    prompt: int
    budget: int
    output: int
    arrival: int
    have: int = 0  # output tokens
    cached: int = 0  # tokens with KV
    pages: int = 0
    drops: int = 0
    dead: bool = False  # ended, and still in its static batch
    grown: int = 0  # tokens a dead row would have KV for
    first: int = -1
    end: int = -1
    failed: bool = False

    @property
    def known(self) -> int:
        return self.prompt + self.have


@dataclass
class Result:
    passes: list[tuple[int, list[int], list[tuple[int, int, int, bool]], list[int]]]
    requests: list[Request]


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def toy_time(decodes: list[Request], chunks: list[tuple[Request, int]], padded: bool) -> int:
    """Picoseconds of one pass on one rank, summed row by row."""
    time = ToyCost.FIXED
    for request in decodes:
        time += ToyCost.DECODE + ToyCost.SAMPLE + ToyCost.SHARED
        time += ToyCost.CONTEXT * ((request.grown if request.dead else request.cached) + 1)
    longest = max([size for _, size in chunks], default=0)
    for request, size in chunks:
        start = request.cached
        last = start + size == request.known
        if padded:
            size = longest
        time += size * (ToyCost.TOKEN + ToyCost.SHARED) + ToyCost.READS * start
        time += ToyCost.PAIRS * ((start + size) ** 2 - start**2)
        time += ToyCost.SAMPLE * last
    return time


class Naive:
    """One engine, one rank, no prefix cache. `rule` is "vllm", "orca" or "static"."""

    def __init__(self, case: Case, rule: str) -> None:
        self.case, self.rule = case, rule
        self.requests = [
            Request(index, row.prompt, row.budget, row.output, row.arrival)
            for index, row in enumerate(case.rows)
        ]
        self.coming = sorted(self.requests, key=lambda request: (request.arrival, request.index))
        self.queue: list[Request] = []
        self.active: list[Request] = []  # in order of admission
        self.prompted: set[int] = set()  # active rows whose prompt is whole
        self.now = 0

    @property
    def free(self) -> int:
        return self.case.hbm_pages - sum(request.pages for request in self.active)

    def arrivals(self) -> None:
        while self.coming and self.coming[0].arrival <= self.now:
            request = self.coming.pop(0)
            if ceil_div(request.known + 1, self.case.page) > self.case.hbm_pages:
                self.fail(request, request.arrival)
            else:
                self.queue.append(request)

    def fail(self, request: Request, now: int) -> None:
        request.failed, request.end = True, now
        if request in self.active:
            self.active.remove(request)

    def run(self) -> Result:
        passes = []
        count = 0
        while self.coming or self.queue or self.active:
            self.arrivals()
            composed = self.compose()
            if composed is None:
                if not (self.coming or self.queue or self.active):
                    break
                if self.queue and not self.active:
                    self.fail(self.queue.pop(0), self.now)  # blocked although nothing runs
                elif self.coming:
                    self.now = self.coming[0].arrival
                continue
            decodes, chunks = composed
            self.now += toy_time(decodes, chunks, self.rule == "static")
            shown = [
                (one.index, one.cached, size, one.cached + size == one.known)
                for one, size in chunks
            ]
            living = sorted(one.index for one in decodes if not one.dead)
            ended = self.commit(decodes, chunks)
            passes.append((count, living, sorted(shown), ended))
            count += 1
        return Result(passes, self.requests)

    def commit(self, decodes: list[Request], chunks: list[tuple[Request, int]]) -> list[int]:
        new_tokens = []
        for request in decodes:
            if request.dead:
                request.grown += 1
            else:
                request.cached += 1
                new_tokens.append(request)
        for request, size in chunks:
            request.cached += size
            if request.cached == request.known:
                self.prompted.add(request.index)
                new_tokens.append(request)
        ended = []
        for request in new_tokens:
            request.have += 1
            if request.first < 0:
                request.first = self.now
            if request.have >= request.output:
                request.end = self.now
                if self.rule == "static":
                    request.dead, request.grown = True, request.cached
                else:
                    self.active.remove(request)
                    self.prompted.discard(request.index)
                ended.append(request.index)
        return sorted(ended)

    # -- the rules ------------------------------------------------------------------------------

    def compose(self) -> tuple[list[Request], list[tuple[Request, int]]] | None:
        decodes, chunks = self.vllm() if self.rule == "vllm" else self.reserved()
        return (decodes, chunks) if decodes or chunks else None

    def vllm(self) -> tuple[list[Request], list[tuple[Request, int]]]:
        page, dropped = self.case.page, False
        while True:
            growers = [one for one in self.decodes_now() if one.cached % page == 0]
            if len(growers) <= self.free:
                break
            victim = self.active[-1]
            if len(self.active) == 1:
                self.fail(victim, self.now)
                continue
            self.active.pop()
            victim.pages = victim.cached = 0
            victim.drops += 1
            self.queue.insert(0, victim)
            self.prompted.discard(victim.index)
            dropped = True
        for one in growers:
            one.pages += 1
        decodes = self.decodes_now()
        planned = sum(1 if one in decodes else one.known - one.cached for one in self.active)
        while (
            not dropped
            and self.queue
            and planned < self.case.budget
            and len(self.active) < self.case.seqs
        ):
            head = self.queue[0]
            pages = ceil_div(head.known, page)
            if pages > self.free:
                break
            self.queue.pop(0)
            head.pages = pages
            self.active.append(head)
            planned += head.known
        left = self.case.budget - len(decodes)
        chunks = []
        for one in self.active:
            if one not in decodes and left > 0:
                size = min(left, one.known - one.cached)
                chunks.append((one, size))
                left -= size
        return decodes, chunks

    def reserved(self) -> tuple[list[Request], list[tuple[Request, int]]]:
        page = self.case.page
        decodes = self.decodes_now()
        living = [one for one in self.active if not one.dead]
        alone = [one for one in decodes if not one.dead]
        if len(alone) == 1 and alone[0].cached >= alone[0].pages * page:
            self.fail(alone[0], self.now)  # it was let in alone and has filled the pool
            living.remove(alone[0])
        if self.rule == "static" and not living:
            self.active, self.prompted = [], set()
        planned = sum(1 if one in decodes else one.known - one.cached for one in self.active)
        if self.rule == "orca" or not self.active:
            seats = min(self.case.seqs, self.case.budget)
            while self.queue and len(self.active) < seats:
                if self.rule == "orca" and planned >= self.case.budget:
                    break
                head = self.queue[0]
                pages = min(ceil_div(head.prompt + head.budget, page), self.case.hbm_pages)
                if pages > self.free:
                    break
                self.queue.pop(0)
                head.pages = pages
                self.active.append(head)
                planned += head.known
        decodes = self.decodes_now()
        return decodes, self.whole_prompts(len(decodes))

    def whole_prompts(self, decodes: int) -> list[tuple[Request, int]]:
        """Prompts that fit the token budget whole, in order; one that never fits is cut."""
        budget = left = self.case.budget - decodes
        chunks: list[tuple[Request, int]] = []
        longest = 0
        for one in self.active:
            if one.index in self.prompted:
                continue
            need = one.known - one.cached
            if self.rule == "static":
                longest = max(longest, need)
                if longest * (len(chunks) + 1) > budget:
                    if not chunks and budget > 0:
                        chunks.append((one, budget))
                    break
            elif need > left:
                if not chunks and left > 0:
                    chunks.append((one, left))
                break
            chunks.append((one, need))
            left -= need
        return chunks

    def decodes_now(self) -> list[Request]:
        return [one for one in self.active if one.index in self.prompted]
