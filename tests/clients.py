"""clients.py SOCKET: what users' own clients get: the official openai package, curl, and a browser-like keep-alive client.

Run by tests/test_openai.c against a real engine; needs the environment that `make venv` makes. Every check fails when the
parameter that it is about is ignored. Prints one line per failed check; the exit status says whether there was any.
"""
import http.client
import json
import socket
import subprocess
import sys

import httpx
import openai
import pydantic

SOCKET = sys.argv[1]
client = openai.OpenAI(
    base_url="http://localhost/v1", api_key="none", max_retries=0,
    http_client=httpx.Client(transport=httpx.HTTPTransport(uds=SOCKET), timeout=120))
MODEL = client.models.list().data[0].id
PROMPT = "The capital of France is"
failures = []


def check(name, condition, *seen):
    if not condition:
        failures.append(name)
        print("failed:", name, *seen, flush=True)


def complete(prompt=PROMPT, **more):
    extra = more.pop("extra", {})
    return client.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, "max_tokens": 12, **more},
                                     extra_body={"return_token_ids": True, **extra})


def stands(choice):  # each token of whole characters, where its offset says
    lists = choice.logprobs
    return len(lists.text_offset) == len(lists.tokens) and lists.text_offset[0] == 0 and all(
        choice.text[at:].startswith(token) for at, token in zip(lists.text_offset, lists.tokens) if "\ufffd" not in token)


def ids(answer, choice=0):
    return answer.choices[choice].token_ids


def ask(path, body):
    data = ["-d", json.dumps(body)] if body is not None else []
    return json.loads(subprocess.run(["curl", "-s", "--unix-socket", SOCKET, "http://localhost" + path, *data],
                                     check=True, capture_output=True).stdout)


def tokens_of(text, **more):
    return ask("/tokenize", {"prompt": text, **more})["tokens"]


def chat(**more):
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Name three colours."}],
                                          **{"temperature": 0, "max_tokens": 12, **more})


def refused(call, status, param):
    try:
        call()
    except openai.APIStatusError as error:
        return error.status_code == status and error.body.get("param") == param
    return False


check("--served-model-name", MODEL == "mine", MODEL)
plain = complete()
first = ids(plain)[0]

# lengths
check("max_tokens", plain.usage.completion_tokens == 12 and plain.choices[0].finish_reason == "length")
check("max_completion_tokens", chat(max_tokens=None, max_completion_tokens=5).usage.completion_tokens == 5)
check("ignore_eos", complete(max_tokens=60, extra={"ignore_eos": True}).usage.completion_tokens == 60)
END = tokens_of("<|im_end|>", parse_special=True)[0]
at_once = complete(logit_bias={str(END): 100})
check("an end token ends", ids(at_once) == [END] and at_once.choices[0].finish_reason == "stop", ids(at_once))
check("ignore_eos, of a sure end", ids(complete(logit_bias={str(END): 100}, extra={"ignore_eos": True})) == [END] * 12)
ended = complete(extra={"stop_token_ids": [ids(plain)[4]]})
at = ids(plain).index(ids(plain)[4])
check("stop_token_ids", ids(ended) == ids(plain)[:at + 1] and ended.choices[0].finish_reason == "stop", ids(ended))
late = complete(extra={"stop_token_ids": [first], "min_tokens": 3})
check("min_tokens", len(ids(late)) >= 3 and first not in ids(late)[:3], ids(late))

# sampling
check("seed", ids(complete(temperature=1, seed=1)) == ids(complete(temperature=1, seed=1)))
check("seed, another", ids(complete(temperature=1, seed=1, max_tokens=30)) != ids(complete(temperature=1, seed=2, max_tokens=30)))
check("temperature", ids(complete(temperature=1.5, seed=3, max_tokens=30)) != ids(complete(max_tokens=30)))
check("top_p", ids(complete(temperature=1.5, seed=3, top_p=1e-6)) == ids(plain))
check("top_k", ids(complete(temperature=1.5, seed=3, extra={"top_k": 1})) == ids(plain))
check("min_p", ids(complete(temperature=1.5, seed=3, extra={"min_p": 1})) == ids(plain))

drawn = [ids(complete(temperature=2, max_tokens=30)) for _ in range(2)]
check("no seed: another one each time", drawn[0] != drawn[1])

# choices
several = complete(n=3, temperature=1, seed=5)
check("n", [c.index for c in several.choices] == [0, 1, 2] and len({tuple(c.token_ids) for c in several.choices}) > 1)

# log-probabilities
scored = complete(logprobs=0).choices[0]
check("logprobs", len(scored.logprobs.token_logprobs) == 12 and all(x <= 0 for x in scored.logprobs.token_logprobs))
talk = chat(logprobs=True).choices[0]
check("logprobs of a chat", len(talk.logprobs.content) == 12 and all(c.logprob <= 0 for c in talk.logprobs.content))
streamed = [event for event in chat(logprobs=True, stream=True) if event.choices[0].logprobs is not None]
check("logprobs in a stream", [e.choices[0].logprobs.content[0] for e in streamed] == talk.logprobs.content)

entries = chat(logprobs=True, top_logprobs=5).choices[0].logprobs.content
check("top_logprobs", all(len(e.top_logprobs) == 5 and e.top_logprobs[0].token == e.token and
                          e.top_logprobs[0].logprob == e.logprob and [t.logprob for t in e.top_logprobs] ==
                          sorted((t.logprob for t in e.top_logprobs), reverse=True) for e in entries))
check("top_logprobs in a stream", [e.choices[0].logprobs.content[0] for e in chat(logprobs=True, top_logprobs=5, stream=True)
                                   if e.choices[0].logprobs] == entries)
listed = complete(logprobs=3).choices[0].logprobs
check("logprobs 3", len(listed.top_logprobs) == 12 and len(listed.top_logprobs[0]) == 3 and
      max(listed.top_logprobs[0].values()) == listed.token_logprobs[0])
check("text_offset", stands(scored))
check("text_offset in a stream", [at for event in complete(logprobs=0, stream=True) if event.choices[0].logprobs
                                  for at in event.choices[0].logprobs.text_offset] == scored.logprobs.text_offset)
check("logprobs 0 lists nothing", scored.logprobs.top_logprobs is None)

# what changes logits
repeated = "The sea, the sea, the sea, the"
same = ids(complete(repeated, max_tokens=24))
for name, value in ("frequency_penalty", 2), ("presence_penalty", 2), ("repetition_penalty", 1.2):
    check(name, len(set(ids(complete(repeated, max_tokens=24, extra={name: value})))) > len(set(same)))
penal = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5}
check("penalties: the same again out of the prefix cache", ids(complete(repeated * 8, extra=penal)) ==
      ids(complete(repeated * 8, extra=penal)))
check("logit_bias", ids(complete(max_tokens=4, logit_bias={"1234": 100})) == [1234] * 4)
check("logit_bias bans", first not in ids(complete(logit_bias={str(first): -100})))
hashes = complete(extra={"return_logits_hash": True}).choices[0].logits_hash
check("hashes are of logits before all that", complete(
    max_tokens=1, logit_bias={"1234": 100}, extra={"return_logits_hash": True}).choices[0].logits_hash == hashes[:1])

# echo
both = complete(echo=True, logprobs=2, max_tokens=0).choices[0].logprobs
check("echo with lists", both.top_logprobs[0] is None and len(both.top_logprobs[1]) == 2)
only = complete(echo=True, logprobs=1, max_tokens=0)
check("text_offset of a prompt", stands(only.choices[0]))
check("echo alone", only.choices[0].text == PROMPT and only.usage.completion_tokens == 0)
echoed = complete(echo=True, n=2)
check("echo before an answer", [c.text for c in echoed.choices] == [PROMPT + plain.choices[0].text] * 2 and
      ids(echoed) == ids(plain) and echoed.usage.completion_tokens == 2 * plain.usage.completion_tokens, echoed)
check("echo in a stream", "".join(e.choices[0].text for e in complete(echo=True, stream=True)) == echoed.choices[0].text)
check("echo: a stop string is not looked for in the prompt",
      complete(echo=True, stop=PROMPT[4:9]).choices[0].text.startswith(PROMPT))
full, own = complete(echo=True, logprobs=2, n=2), complete(logprobs=2).choices[0].logprobs
check("echo with logprobs: the prompt's, then the answer's", all(
    c.logprobs.token_logprobs == both.token_logprobs + own.token_logprobs and
    c.logprobs.tokens == both.tokens + own.tokens and c.logprobs.top_logprobs == both.top_logprobs + own.top_logprobs and
    c.text == PROMPT + plain.choices[0].text and stands(c) for c in full.choices), full)
check("echo with logprobs: usage", full.usage.completion_tokens == echoed.usage.completion_tokens)
streamed = {0: [], 1: []}
for event in complete(echo=True, logprobs=2, n=2, stream=True):
    streamed[event.choices[0].index] += event.choices[0].logprobs.token_logprobs if event.choices[0].logprobs else []
check("echo with logprobs in a stream", [streamed[i] for i in range(2)] == [c.logprobs.token_logprobs for c in full.choices])
penal_echo = complete(repeated, echo=True, logprobs=0, extra={"repetition_penalty": 1.3, "frequency_penalty": 0.5})
check("echo with logprobs: penalties are the same", ids(penal_echo)[-12:] == ids(complete(
    repeated, extra={"repetition_penalty": 1.3, "frequency_penalty": 0.5})))
parts = [e.choices[0].logprobs for e in complete(echo=True, logprobs=2, max_tokens=0, stream=True, n=2)
         if e.choices[0].logprobs and e.choices[0].index == 1]
check("scores of a prompt in a stream", [x for p in parts for x in p.token_logprobs] == both.token_logprobs and
      [x for p in parts for x in p.text_offset] == both.text_offset)

# prompts
check("a prompt of ids", ids(complete(tokens_of(PROMPT))) == ids(plain))

lists = [PROMPT, "Water boils at", tokens_of(PROMPT)]
several = complete(lists, n=2)
alone = [complete(prompt) for prompt in lists]
check("a list of prompts", [c.index for c in several.choices] == list(range(6)) and
      [c.token_ids for c in several.choices] == [ids(one) for one in alone for _ in range(2)])
check("usage of a list of prompts", several.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone) and
      several.usage.completion_tokens == 2 * sum(one.usage.completion_tokens for one in alone), several.usage)
texts = [""] * 3
for event in complete(lists, stream=True):
    texts[event.choices[0].index] += event.choices[0].text
check("a list of prompts in a stream", texts == [one.choices[0].text for one in alone])
scores = complete(lists, echo=True, logprobs=1, max_tokens=0)
check("a list of prompts with echo", [c.text for c in scores.choices] == [PROMPT, lists[1], PROMPT])
check("error: too many prompts", refused(lambda: complete(["a"] * 129), 400, "prompt"))

# stop strings and streams
whole = complete(max_tokens=40)
text = whole.choices[0].text
stop = text[12:17]
stopped = complete(max_tokens=40, stop=[stop, "never there"])
check("stop", stopped.choices[0].text == text[:text.index(stop)] and stopped.choices[0].finish_reason == "stop")
events = list(complete(max_tokens=40, stream=True, stream_options={"include_usage": True}))
check("stream", "".join(e.choices[0].text for e in events if e.choices) == text)
check("stream_options.include_usage", events[-1].usage == whole.usage and not events[-1].choices, events[-1], whole.usage)
check("chat in a stream", "".join(e.choices[0].delta.content or "" for e in chat(stream=True)) ==
      chat().choices[0].message.content)

# the rest
raw = client.completions.with_raw_response.create(model=MODEL, prompt="a", max_tokens=1, user="u",
                                                  extra_headers={"X-Request-Id": "mine-7"}, extra_body={"priority": 3})
check("X-Request-Id", raw.headers.get("x-request-id") == "mine-7", raw.headers)
check("user and priority are taken", raw.parse().usage.completion_tokens == 1)
hashes = complete(extra={"return_logits_hash": True}).choices[0].logits_hash
bare = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2).choices[0]
check("without asking neither ids nor hashes", not hasattr(bare, "token_ids") and not hasattr(bare, "logits_hash"), bare)
check("return_token_ids", ask("/detokenize", {"tokens": ids(plain)})["prompt"] == plain.choices[0].text)
check("return_logits_hash", len(hashes) == 12 and len(set(hashes)) == 12)
special = complete("<|im_start|>", max_tokens=1).usage.prompt_tokens
check("parse_special", complete("<|im_start|>", max_tokens=1, extra={"parse_special": True}).usage.prompt_tokens < special)
check("models.retrieve", client.models.retrieve(MODEL).id == MODEL)

check("best_of: as many as n", len(complete(n=2, best_of=2, max_tokens=1).choices) == 2)
check("/tokenize of a chat", ask("/tokenize", {"messages": [{"role": "user", "content": "Name three colours."}]})["count"] ==
      chat(max_tokens=1).usage.prompt_tokens)

# the package's own types, with nothing missing and nothing of another kind
for name, kind, answer in (
        ("completion", openai.types.Completion, ask("/v1/completions", {"prompt": PROMPT, "logprobs": 2, "n": 2})),
        ("chat", openai.types.chat.ChatCompletion, ask("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 2, "max_tokens": 3})),
        ("model", openai.types.Model, ask("/v1/models/" + MODEL, None))):
    try:
        kind.model_validate(answer, strict=True)
    except ValueError as error:
        check(f"types: {name}", False, error)
with client.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "Name three colours."}],
                                    temperature=0, max_tokens=200, logprobs=True) as whole_chat:
    kinds = {event.type for event in whole_chat}
    final = whole_chat.get_final_completion().choices[0]
check("the package's own streams", {"chunk", "content.delta", "content.done", "logprobs.content.done"} <= kinds and
      final.message.content == chat(max_tokens=200).choices[0].message.content, kinds)
parsed = client.chat.completions.parse(
    model=MODEL, messages=[{"role": "user", "content": "A colour?"}], temperature=0, max_tokens=60,
    response_format=type("Colour", (pydantic.BaseModel,), {"__annotations__": {"is_warm": bool}}))
check("the package's own parsing", isinstance(parsed.choices[0].message.parsed.is_warm, bool), parsed)

# errors, as the package sees them
try:
    client.completions.create(model=MODEL, prompt="", extra_headers={"X-Request-Id": "mine-8"})
    check("error: none", False)
except openai.BadRequestError as error:
    check("X-Request-Id of an error", error.request_id == "mine-8", error.response.headers)
check("error: field", refused(lambda: complete(temperature=-1), 400, "temperature"))
check("error: user", refused(lambda: complete(extra={"user": 7}), 400, "user"))
check("error: logprobs", refused(lambda: complete(logprobs=21), 400, "logprobs"))
check("error: logit_bias", refused(lambda: complete(logit_bias={"x": 1}), 400, "logit_bias"))
check("error: top_logprobs", refused(lambda: chat(top_logprobs=1), 400, "top_logprobs"))
check("error: model", refused(lambda: client.completions.create(model="other", prompt="a"), 404, "model"))


# curl, as people type it
def curl(*more, given=""):
    return subprocess.run(["curl", "-sS", "--unix-socket", SOCKET, *more], check=True, capture_output=True,
                          input=given.encode(), timeout=120).stdout.decode()


body = json.dumps({"prompt": PROMPT, "max_tokens": 12, "temperature": 0})
check("curl", json.loads(curl("http://localhost/v1/completions", "-d", body))["choices"][0]["text"] == plain.choices[0].text)
check("curl: Expect: 100-continue", "100 Continue" in curl("-i", "-H", "Expect: 100-continue", "http://localhost/v1/completions",
                                                           "-d", body))
check("curl: chunked body", json.loads(curl("-H", "Transfer-Encoding: chunked", "http://localhost/v1/completions", "-d", body))
      ["choices"][0]["text"] == plain.choices[0].text)
check("curl -N: a stream", curl("-N", "http://localhost/v1/completions", "-d", json.dumps(
    {"prompt": PROMPT, "max_tokens": 3, "stream": True})).rstrip().endswith("data: [DONE]"))
check("curl: large body", json.loads(curl("http://localhost/v1/completions", "-d", "@-", given=json.dumps(
    {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "x": "y" * 400000})))["choices"][0]["text"] == plain.choices[0].text)
check("curl -I", curl("-I", "http://localhost/health").startswith("HTTP/1.1 200"))


# a browser: one connection, many requests, headers of its own
class UnixConnection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(SOCKET)


browser = UnixConnection("localhost", timeout=120)
headers = {"User-Agent": "Mozilla/5.0", "Accept": "*/*", "Accept-Encoding": "gzip, deflate, br", "Connection": "keep-alive",
           "Content-Type": "application/json"}
kept = None
for number in range(20):
    browser.request("POST", "/v1/completions", body=body, headers={**headers, "X-Request-Id": str(number)})
    response = browser.getresponse()
    answer = json.loads(response.read())
    kept = kept or browser.sock
    check("keep-alive", response.getheader("X-Request-Id") == str(number) and browser.sock is kept and
          answer["choices"][0]["text"] == plain.choices[0].text)
browser.request("GET", "/nothing", headers=headers)
check("keep-alive after an error", browser.getresponse().read() and browser.sock is kept)

# half-close: the client has said all it will; the answer still comes
half = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
half.connect(SOCKET)
message = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
half.sendall(message + message)  # pipelined
half.shutdown(socket.SHUT_WR)
got = b""
while more := half.recv(65536):
    got += more
check("half-close and pipelining", got.count(b"HTTP/1.1 200 OK") == 2, got[:200])

print("clients:", "all checks passed" if not failures else f"{len(failures)} failed")
sys.exit(bool(failures))
