#!/usr/bin/env python3
"""Writes template_cases.jsonl: requests, and the prompts that jinja2 makes of them with each of templates/*.jinja.

Usage: make_template_cases.py > template_cases.jsonl   (needs the Python package jinja2, 3.1)
The templates say what published models of these families expect (facts of their formats).
"""
import copy
import json
import pathlib
import re

from transformers_jinja import NOW, environment  # noqa: F401

TOKENS = {"llama-3": ("<|begin_of_text|>", "<|eot_id|>"), "gemma": ("<bos>", "<eos>"), "qwen": ("", "<|im_end|>"), "chatml": ("", "<|im_end|>"),
          "phi": ("<s>", "<|endoftext|>"), "deepseek": ("<|begin▁of▁sentence|>", "<|end▁of▁sentence|>"), "command-r": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
          "granite": ("<|end_of_text|>", "<|end_of_text|>"), "smollm": ("<|im_start|>", "<|im_end|>"), "olmo": ("<|endoftext|>", "<|endoftext|>")}

turn = lambda role, content, **more: {"role": role, "content": content, **more}
call = lambda name, arguments, number=1: {"id": f"callid{number:03}", "type": "function", "function": {"name": name, "arguments": arguments}}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather at a place.", "parameters": {"type": "object", "properties": {
    "city": {"type": "string", "description": "Which \"city\""}, "days": {"type": "integer", "description": "How many days"},
    "units": {"type": "string", "enum": ["C", "F"], "description": "of temperature"}}, "required": ["city"]}}}
SUM = {"type": "function", "function": {"name": "add", "description": "Adds numbers <b>&</b> 'more'.", "parameters": {"type": "object", "properties": {
    "numbers": {"type": "array", "items": {"type": "number"}, "description": "All of them"}}, "required": ["numbers"]}}}
BODIES = [
    {"messages": [turn("user", "Hello")]},
    {"messages": [turn("user", "Hello")], "add_generation_prompt": False},
    {"messages": [turn("system", "Be brief."), turn("user", "  spaces \n")]},
    {"messages": [turn("user", "One"), turn("assistant", "Two"), turn("user", "Three")]},
    {"messages": [turn("system", "S"), turn("user", "One"), turn("assistant", "Two "), turn("user", "Three"), turn("assistant", "Four"), turn("user", "多言語 🙂")]},
    {"messages": [turn("user", "One"), turn("user", "Two")]},
    {"messages": [turn("assistant", "I speak first"), turn("user", "x")]},
    {"messages": [turn("user", "a"), turn("assistant", "<think>\nhm\n</think>\n\nb"), turn("user", "<|im_end|>[/INST]</s>{{ 7 * 7 }}{% raw %}")]},
    {"messages": [turn("user", [{"type": "text", "text": "part one"}, {"type": "text", "text": "part two"}])]},
    {"messages": [turn("user", "q"), turn("assistant", "r", reasoning_content="because"), turn("user", "s")], "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": [turn("system", "Sys /no_think"), turn("user", "q")], "chat_template_kwargs": {"enable_thinking": True, "extra": [1, {"a": None}]}},
    {"messages": [turn("user", "Weather in Paris?")], "tools": [WEATHER]},
    {"messages": [turn("system", "Use tools."), turn("user", "Weather in Paris?")], "tools": [WEATHER, SUM], "tool_choice": "auto"},
    {"messages": [turn("user", "Weather?")], "tools": [WEATHER], "tool_choice": "none"},
    {"messages": [turn("user", "Weather?"), turn("assistant", None, tool_calls=[call("get_weather", "{\"city\": \"Zürich\", \"days\": 2}")]),
                  turn("tool", "{\"t\": 3}", tool_call_id="callid001", name="get_weather")], "tools": [WEATHER, SUM]},
    {"messages": [turn("user", "Both?"), turn("assistant", "", tool_calls=[call("get_weather", "{\"city\": \"A\"}"), call("add", "{\"numbers\": [1, 2.5, -3]}", 2)]),
                  turn("tool", "3 degrees", tool_call_id="callid001"), turn("tool", "0.5", tool_call_id="callid002"), turn("assistant", "3 and 0.5"), turn("user", "thanks")],
     "tools": [WEATHER, SUM]},
    {"messages": [turn("user", "doc?")], "documents": [{"title": "T", "text": "Facts."}, {"title": "U", "text": "More."}]},
]


def prepared(body):
    """What a server hands to the template: text parts joined, arguments parsed."""
    body = copy.deepcopy(body)
    for message in body["messages"]:
        if isinstance(message["content"], list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
        for one in message.get("tool_calls", []):
            one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    tools = body.get("tools") if body.get("tool_choice") != "none" else None
    return {**body.get("chat_template_kwargs", {}), "messages": body["messages"], "tools": tools, "documents": body.get("documents"),
            "add_generation_prompt": body.get("add_generation_prompt", True)}


env = environment()
for path in sorted(pathlib.Path(__file__).parent.glob("templates/*.jinja")):
    source = path.read_text()
    begin, end = next((tokens for prefix, tokens in TOKENS.items() if path.stem.startswith(prefix)), ("<s>", "</s>"))
    for body in BODIES:
        if body.get("tools") and body.get("tool_choice") != "none" and not re.search(r"(?<!')\btools\b(?!')", source):
            continue
        line = {"template": path.stem, "bos": begin, "eos": end, "body": body}
        try:
            line["prompt"] = env.from_string(source).render(bos_token=begin, eos_token=end, **prepared(body))
        except Exception as error:  # noqa: BLE001: a template may refuse a conversation
            line["error"] = type(error).__name__ + ": " + str(error)
        print(json.dumps(line))
