#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api.h"
#include "engine/tok_tables.h"
#include "ipc/automaton.h"
#include "ipc/layout.h"
#include "tests/plans.h"
#include "tests/tiny_vocab.h"

static struct plan plan;
static struct tok tok;
static struct api api;
static struct api_request request;
static struct api_error error;

static void set_up_with(uint32_t begin)
{
    size_t vocab_bytes;
    void *blob = tiny_vocab_build(&vocab_bytes);
    struct err err = {0};
    ((struct tok_blob *)blob)->bos = begin;
    ((struct tok_blob *)blob)->adds_bos = begin != TOK_NONE;
    plan = plan_for_tests();
    tiny_vocab_plan(&plan, vocab_bytes);
    cr_assert_eq(tok_attach(&tok, blob, vocab_bytes, api_text_bytes(&plan), &err), 0, "%s", err.text);
    cr_assert_eq(api_open(&api, &plan, &tok, &err), 0, "%s", err.text);
}

static void set_up(void)
{
    set_up_with(TOK_NONE);
}

/* Of a model that wants a token in front of every text. */
static void set_up_with_begin(void)
{
    set_up_with(TINY_IM_START);
}

static void expect_good(enum api_endpoint endpoint, const char *body)
{
    cr_assert_eq(api_parse(&api, endpoint, body, strlen(body), &request, &error), 0, "%s: %s", body, error.message);
}

static void completion(const char *body)
{
    expect_good(API_COMPLETIONS, body);
}

static void chat(const char *body)
{
    expect_good(API_CHAT_COMPLETIONS, body);
}

Test(api, fills_in_the_defaults, .init = set_up)
{
    completion("{\"prompt\":\"ab\"}");
    cr_expect_eq(request.format.kind, ANSWER_COMPLETION);
    cr_expect_not(request.format.is_stream);
    cr_expect_eq(request.prompt_tokens, 2);
    cr_expect_eq(request.prompt[0], TINY_BYTE_FIRST + 'a');
    cr_expect_eq(request.max_tokens, 16);
    cr_expect_eq(request.min_tokens, 0);
    cr_expect_eq(request.choices, 1);
    cr_expect_eq(request.temperature, 1);
    cr_expect_eq(request.top_p, 1);
    cr_expect_eq(request.min_p, 0);
    cr_expect_eq(request.top_k, 0);
    cr_expect_not(request.has_seed);
    cr_expect_eq(request.flags, 0);
    cr_expect_eq(request.unknown_fields, 0);
}

Test(api, takes_every_parameter, .init = set_up)
{
    completion("{\"model\":\"test-model\",\"prompt\":[5,6,7],\"max_tokens\":20,\"min_tokens\":3,\"temperature\":0.5,"
               "\"top_p\":0.9,\"top_k\":40,\"min_p\":0.05,\"seed\":-7,\"n\":2,\"stop\":[\"x\",\"yz\"],"
               "\"stop_token_ids\":[4,5],\"ignore_eos\":true,\"stream\":true,"
               "\"stream_options\":{\"include_usage\":true},\"priority\":-3,\"user\":\"u\",\"return_token_ids\":true,"
               "\"return_logits_hash\":true,\"logprobs\":1,\"no_such_field\":1,\"nor_this\":null}");
    cr_expect_eq(request.prompt_tokens, 3);
    cr_expect_eq(request.prompt[2], 7);
    cr_expect_eq(request.max_tokens, 20);
    cr_expect_eq(request.min_tokens, 3);
    cr_expect_eq(request.temperature, 0.5f);
    cr_expect_eq(request.top_p, 0.9f);
    cr_expect_eq(request.top_k, 40);
    cr_expect_eq(request.min_p, 0.05f);
    cr_expect(request.has_seed);
    cr_expect_eq(request.seed, (uint64_t)-7);
    cr_expect_eq(request.choices, 2);
    cr_expect_eq(request.priority, -3);
    cr_expect_eq(request.flags, REQUEST_IGNORE_EOS | REQUEST_LOGITS_HASH | REQUEST_LOGPROB);
    cr_expect_eq(request.stop_token_count, 2);
    cr_expect_eq(request.stop_tokens[1], 5);
    cr_expect_eq(request.unknown_fields, 2);
    cr_expect_eq(request.format.stop_count, 2);
    cr_expect_eq(request.format.stop_size[1], 2);
    cr_expect_eq(memcmp(request.format.stops, "xyz", 3), 0);
    cr_expect(request.format.is_stream && request.format.includes_usage && request.format.returns_token_ids &&
              request.format.returns_logits_hash && request.format.returns_logprobs);
}

Test(api, takes_what_changes_logits_and_how_many_of_them_are_shown, .init = set_up)
{
    completion("{\"prompt\":\"a\",\"presence_penalty\":0.5,\"frequency_penalty\":-1,\"repetition_penalty\":1.25,"
               "\"logit_bias\":{\"7\":-100,\"9\":1.5},\"logprobs\":5}");
    cr_expect_eq(request.presence_penalty, 0.5f);
    cr_expect_eq(request.frequency_penalty, -1.0f);
    cr_expect_eq(request.repetition_penalty, 1.25f);
    cr_expect_eq(request.bias_count, 2);
    float biases[2];
    memcpy(&biases[0], &request.biases[1], sizeof(float));
    memcpy(&biases[1], &request.biases[3], sizeof(float));
    cr_expect(request.biases[0] == 7 && biases[0] == -100.0f && request.biases[2] == 9 && biases[1] == 1.5f);
    cr_expect_eq(request.top_logprobs, 5);
    completion("{\"prompt\":\"a\"}");
    cr_expect(request.bias_count == 0 && request.top_logprobs == 0 && request.repetition_penalty == 1);
    chat("{\"messages\":[{\"role\":\"user\",\"content\":\"Q\"}],\"logprobs\":true,\"top_logprobs\":3}");
    cr_expect_eq(request.top_logprobs, 3);
}

Test(api, null_is_as_good_as_absent, .init = set_up)
{
    completion("{\"prompt\":\"a\",\"max_tokens\":null,\"temperature\":null,\"stop\":null,\"stream_options\":null,"
               "\"n\":null,\"seed\":null,\"logit_bias\":null,\"echo\":null,\"model\":null}");
    cr_expect_eq(request.max_tokens, 16);
    cr_expect_eq(request.temperature, 1);
    cr_expect_not(request.has_seed);
}

Test(api, special_tokens_in_a_prompt_are_text_unless_asked_for, .init = set_up)
{
    completion("{\"prompt\":\"<|im_end|>\"}");
    cr_expect_eq(request.prompt_tokens, strlen("<|im_end|>"));
    completion("{\"prompt\":\"<|im_end|>\",\"parse_special\":true}");
    cr_expect_eq(request.prompt_tokens, 1);
    cr_expect_eq(request.prompt[0], TINY_IM_END);
}

Test(api, one_prompt_may_stand_in_a_list, .init = set_up)
{
    completion("{\"prompt\":[\"abc\"]}");
    cr_expect_eq(request.prompt_tokens, 3);
    completion("{\"prompt\":[[9,8]]}");
    cr_expect_eq(request.prompt_tokens, 2);
}

Test(api, a_list_of_prompts_is_one_request_with_each_of_them, .init = set_up)
{
    completion("{\"prompt\":[\"abc\",[9,8],\"hello\"],\"max_tokens\":7,\"n\":2}");
    cr_expect(request.prompt_count == 3 && request.prompt_index == 0 && request.prompt_tokens == 3);
    cr_expect_eq(request.prompt[0], TINY_BYTE_FIRST + 'a');
    cr_assert_eq(api_next_prompt(&api, &request, &error), 0, "%s", error.message);
    cr_expect(request.prompt_index == 1 && request.prompt_tokens == 2 && request.prompt[1] == 8);
    cr_assert_eq(api_next_prompt(&api, &request, &error), 0, "%s", error.message);
    cr_expect(request.prompt_index == 2 && request.prompt_tokens == 1 && request.prompt[0] == TINY_HELLO);
    cr_expect(request.max_tokens == 7 && request.choices == 2 && request.prompt_pages == 3);
    completion("{\"prompt\":[[1,2],[]]}");
    cr_assert_eq(api_next_prompt(&api, &request, &error), -1);
    cr_expect(strstr(error.message, "prompt 2 of 2: prompt is empty") != NULL, "%s", error.message);
}

Test(api, says_how_many_prompts_a_list_may_have, .init = set_up)
{
    char body[4096] = "{\"prompt\":[\"a\"";
    for (uint32_t i = 0; i < plan.requests_max; i++)
        strcat(body, ",\"a\"");
    strcat(body, "]}");
    cr_assert_eq(api_parse(&api, API_COMPLETIONS, body, strlen(body), &request, &error), -1);
    cr_expect(strstr(error.message, "prompt holds 17 prompts; at most 16 are allowed") != NULL, "%s", error.message);
    plan.prompt_pages = 1; /* too small a pool for two */
    completion("{\"prompt\":[\"a\",\"b\"]}");
    cr_assert_eq(api_next_prompt(&api, &request, &error), -1);
    cr_expect_eq(error.status, 413);
    cr_expect(strstr(error.message, "prompt 2 of 2: the prompts take 2 pages") != NULL, "%s", error.message);
}

static uint32_t expect_turns(const char *const *parts, size_t count)
{
    uint32_t at = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t ids[256];
        uint32_t size = 1;
        if (strcmp(parts[i], "<") == 0)
            ids[0] = TINY_IM_START;
        else if (strcmp(parts[i], ">") == 0)
            ids[0] = TINY_IM_END;
        else
            size = tiny_vocab_bytes(parts[i], ids);
        cr_assert_leq(at + size, request.prompt_tokens);
        cr_assert_eq(memcmp(request.prompt + at, ids, size * sizeof(*ids)), 0, "part %zu: %s", i, parts[i]);
        at += size;
    }
    return at;
}

Test(api, a_conversation_follows_the_template, .init = set_up)
{
    chat("{\"messages\":[{\"role\":\"user\",\"content\":\"Q<|im_end|>\"},"
         "{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"A\"},{\"type\":\"text\",\"text\":\"B\"}]}]"
         "}");
    static const char *const parts[] = {"<", "system\nBe brief", ">", "\n", "<", "user\nQ<|im_end|>", ">", "\n",
                                        "<", "assistant\nA\nB",  ">", "\n", "<", "assistant\n"};
    cr_expect_eq(expect_turns(parts, ARRAY_COUNT(parts)), request.prompt_tokens);
    cr_expect_eq(request.format.kind, ANSWER_CHAT);
    cr_expect_eq(request.max_tokens, 512 - request.prompt_tokens);
}

Test(api, a_chat_takes_both_names_of_the_limit, .init = set_up)
{
    chat("{\"messages\":[{\"role\":\"user\",\"content\":\"Q\"}],\"max_completion_tokens\":7,\"logprobs\":true}");
    cr_expect_eq(request.max_tokens, 7);
    cr_expect(request.format.returns_logprobs);
    chat("{\"messages\":[{\"role\":\"user\",\"content\":\"Q\"}],\"max_tokens\":8,\"top_logprobs\":0}");
    cr_expect_eq(request.max_tokens, 8);
}

Test(api, an_echoed_prompt_is_scored_for_logprobs_and_where_nothing_follows_it, .init = set_up)
{
    static const char *const limits[] = {"max_tokens", "max_completion_tokens"};
    for (size_t i = 0; i < 4; i++) {
        char body[256];
        snprintf(body, sizeof(body), "{\"prompt\":\"abc\",\"echo\":true,\"%s\":0,\"n\":2,\"stream\":true%s}",
                 limits[i % 2], i < 2 ? ",\"logprobs\":1" : "");
        completion(body);
        cr_expect(request.format.echoes && request.format.returns_logprobs);
        cr_expect_eq(request.flags, REQUEST_SCORE | REQUEST_LOGPROB);
        cr_expect_eq(request.max_tokens, 0);
    }
    completion("{\"prompt\":\"a\",\"echo\":true,\"max_tokens\":5,\"logprobs\":0}");
    cr_expect_eq(request.flags, REQUEST_SCORE | REQUEST_LOGPROB);
    cr_expect_eq(request.max_tokens, 5);
    completion("{\"prompt\":\"abc\",\"echo\":true,\"max_tokens\":5}");
    cr_expect(request.format.echoes && !request.format.returns_logprobs);
    cr_expect_eq(request.flags, 0);
    cr_expect_eq(request.max_tokens, 5);
    completion("{\"prompt\":\"abc\",\"echo\":false}");
    cr_expect_not(request.format.echoes);
}

Test(api, values_that_ask_for_nothing_are_let_pass, .init = set_up)
{
    completion("{\"prompt\":\"a\",\"presence_penalty\":0,\"frequency_penalty\":0.0,\"repetition_penalty\":1,"
               "\"logit_bias\":{},\"best_of\":1,\"suffix\":\"\",\"response_format\":{\"type\":\"text\"},\"tools\":[],"
               "\"bad_words\":[],\"allowed_token_ids\":null,\"truncate_prompt_tokens\":null,"
               "\"include_stop_str_in_output\":false,\"use_beam_search\":false,\"skip_special_tokens\":true}");
    cr_expect_eq(request.unknown_fields, 0);
    completion("{\"prompt\":\"a\",\"n\":3,\"best_of\":3}");
    cr_expect_eq(request.choices, 3);
}

/* The request's grammar lets this be a whole answer. */
static bool allows(const char *text)
{
    const struct automaton *automaton = (const void *)request.grammar;
    uint32_t state = AUTOMATON_START;
    cr_assert(automaton_is_sound(automaton, request.grammar_words * sizeof(uint32_t)));
    for (const char *at = text; *at != '\0'; at++)
        state = automaton_step(automaton, state, (uint8_t)*at);
    return automaton_accepts(automaton, state);
}

Test(api, what_an_answer_has_to_keep_to_comes_by_openais_and_by_vllms_names, .init = set_up)
{
    completion("{\"prompt\":\"a\",\"guided_choice\":[\"yes\",\"no\"]}");
    cr_expect(allows("yes") && allows("no") && !allows("") && !allows("yesno"));
    completion("{\"prompt\":\"a\",\"guided_regex\":\"a{2,3}\"}");
    cr_expect(allows("aa") && allows("aaa") && !allows("a") && !allows("aaaa"));
    completion("{\"prompt\":\"a\",\"guided_json\":{\"type\":\"integer\"}}");
    cr_expect(allows("-12") && !allows("1.5"));
    completion("{\"prompt\":\"a\",\"guided_json\":\"{\\\"type\\\":\\\"integer\\\"}\"}");
    cr_expect(allows("-12") && !allows("1.5"));
    completion("{\"prompt\":\"a\",\"structured_outputs\":{\"json\":null,\"regex\":\"x+\"}}");
    cr_expect(allows("xx") && !allows("y"));
    completion("{\"prompt\":\"a\",\"structured_outputs\":{\"json_object\":true}}");
    cr_expect(allows("{\"a\": [1]}") && !allows("[1]"));
    chat("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"response_format\":{\"type\":\"json_object\"}}");
    cr_expect(allows("{\"a\": [1]}") && !allows("[1]"));
    chat("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"response_format\":{\"type\":\"json_schema\","
         "\"json_schema\":{\"name\":\"n\",\"strict\":true,\"schema\":{\"enum\":[\"\xc3\xa9\"]}}}}");
    cr_expect(allows("\"\xc3\xa9\"") && !allows("\"e\""));
    cr_expect_eq(request.unknown_fields, 0);
    completion("{\"prompt\":\"a\"}");
    cr_expect_eq(request.grammar_words, 0);
}

Test(api, names_the_field_and_what_is_allowed, .init = set_up)
{
    static const struct {
        enum api_endpoint endpoint;
        const char *body, *param, *says;
        int status;
    } cases[] = {
        {API_COMPLETIONS, "", "", "empty", 400},
        {API_COMPLETIONS, "{", "", "line 1", 400},
        {API_COMPLETIONS, "[]", "", "object", 400},
        {API_COMPLETIONS, "{\"prompt\":\"\xff\"}", "", "not valid JSON", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"n\":99999999999999999999}", "", "not valid JSON", 400},
        {API_COMPLETIONS, "{}", "prompt", "missing", 400},
        {API_COMPLETIONS, "{\"prompt\":null}", "prompt", "missing", 400},
        {API_COMPLETIONS, "{\"prompt\":7}", "prompt", "string", 400},
        {API_COMPLETIONS, "{\"prompt\":\"\"}", "prompt", "empty", 400},
        {API_COMPLETIONS, "{\"prompt\":[]}", "prompt", "empty", 400},
        {API_COMPLETIONS, "{\"prompt\":[1,\"a\"]}", "prompt", "element 1", 400},
        {API_COMPLETIONS, "{\"prompt\":[1,264]}", "prompt", "0 to 263", 400},
        {API_COMPLETIONS, "{\"prompt\":[-1]}", "prompt", "0 to 263", 400},
        {API_COMPLETIONS, "{\"prompt\":[1.5]}", "prompt", "0 to 263", 400},
        {API_COMPLETIONS, "{\"prompt\":[\"\",\"b\"]}", "prompt", "prompt 1 of 2: prompt is empty", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"model\":\"other\"}", "model", "test-model", 404},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"model\":3}", "model", "string", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"max_tokens\":\"x\"}", "max_tokens", "1 to 511", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"max_tokens\":0}", "max_tokens", "1 to 511", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"max_tokens\":512}", "max_tokens", "512; together they may be 512", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"max_completion_tokens\":512}", "max_completion_tokens", "512", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"max_tokens\":5,\"min_tokens\":6}", "min_tokens", "0 to 5", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"temperature\":-1}", "temperature", "0 to 100", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"temperature\":\"hot\"}", "temperature", "number", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"top_p\":0}", "top_p", "more than 0", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"top_p\":1.01}", "top_p", "at most 1", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"min_p\":2}", "min_p", "0 to 1", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"top_k\":1.5}", "top_k", "integer", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"seed\":\"1\"}", "seed", "integer", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"n\":0}", "n", "1 to 16", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"n\":17}", "n", "1 to 16", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"priority\":3000000000}", "priority", "2147483647", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"ignore_eos\":1}", "ignore_eos", "true or false", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"stream\":\"yes\"}", "stream", "true or false", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"stream_options\":{}}", "stream_options", "stream is true", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}",
         "stream_options.include_usage", "true or false", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"stop\":5}", "stop", "string", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"stop\":[\"\"]}", "stop", "1 to 256", 400},
        {API_COMPLETIONS,
         "{\"prompt\":\"a\",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\","
         "\"e\",\"f\",\"g\",\"h\"]}",
         "stop", "17 strings", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"stop_token_ids\":[264]}", "stop_token_ids", "0 to 263", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"logprobs\":21}", "logprobs", "from 0 to 20", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"logprobs\":true}", "logprobs", "integer", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"echo\":true,\"max_tokens\":0}", "prompt", "one token", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"n\":16,\"logprobs\":20,\"max_tokens\":500}", "n",
         "pages of the token log", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"echo\":false,\"max_tokens\":0}", "max_tokens", "1 to 511", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"presence_penalty\":2.5}", "presence_penalty", "from -2 to 2", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"frequency_penalty\":\"1\"}", "frequency_penalty", "a number", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"repetition_penalty\":0}", "repetition_penalty", "more than 0", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"logit_bias\":{\"x\":1}}", "logit_bias", "'x' is not a token id", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"logit_bias\":{\"99999999\":1}}", "logit_bias", "not a token id", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"logit_bias\":{\"5\":101}}", "logit_bias", "from -100 to 100", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"logit_bias\":[5]}", "logit_bias", "an object", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"xml\"}}", "response_format",
         "text, json_object or json_schema", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"response_format\":3}", "response_format", "type", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}}",
         "response_format", "with a schema", 400},
        {API_COMPLETIONS,
         "{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":"
         "{\"type\":\"integer\",\"minimum\":3}}}}",
         "response_format", "'minimum'", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_json\":\"{\"}", "guided_json", "not valid JSON", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_json\":\"{\\\"oneOf\\\":[]}\"}", "guided_json", "'oneOf'", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_regex\":\"(a\"}", "guided_regex", "at byte 2", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_regex\":[]}", "guided_regex", "a string", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_regex\":\"[a-zA-Z]{4000}(b|[^b]{4000})\"}", "guided_regex",
         "too large", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_choice\":[]}", "guided_choice", "a list", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_choice\":[\"a\",\"\"]}", "guided_choice", "choice 1", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_choice\":[\"a\"],\"guided_regex\":\"a\"}", "guided_choice",
         "one of them only", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_choice\":[\"a\"],\"ignore_eos\":true}", "guided_choice",
         "leave out ignore_eos", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_choice\":[\"a\"],\"min_tokens\":2}", "guided_choice",
         "leave out min_tokens", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"guided_grammar\":\"x\"}", "guided_grammar", "not supported", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"structured_outputs\":{\"grammar\":\"x\"}}", "structured_outputs",
         "'grammar'", 400},
        {API_COMPLETIONS, "{\"prompt\":\"a\",\"structured_outputs\":[]}", "structured_outputs", "an object", 400},
        {API_CHAT_COMPLETIONS, "{}", "messages", "list", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[]}", "messages", "list", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":\"hi\"}", "messages", "list", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[3]}", "messages", "object", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", "missing", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[{\"content\":\"a\"}]}", "messages[0].role", "small letters", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[{\"role\":\"user\\n\",\"content\":\"a\"}]}", "messages[0].role",
         "small letters", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         "messages[0].content", "text only", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"top_logprobs\":2}",
         "top_logprobs", "only when logprobs is true", 400},
        {API_CHAT_COMPLETIONS, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":1}", "logprobs",
         "true or false", 400},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        int ret = api_parse(&api, cases[i].endpoint, cases[i].body, strlen(cases[i].body), &request, &error);
        cr_expect_eq(ret, -1, "%s", cases[i].body);
        if (ret == 0)
            continue;
        cr_expect_eq(error.status, cases[i].status, "%s: %d", cases[i].body, error.status);
        cr_expect_str_eq(error.param, cases[i].param, "%s: param %s", cases[i].body, error.param);
        cr_expect_str_eq(error.type, "invalid_request_error");
        cr_expect_not_null(strstr(error.message, cases[i].says), "%s: %s", cases[i].body, error.message);
    }
}

Test(api, a_prompt_beyond_the_limit_is_refused_with_the_numbers, .init = set_up)
{
    char *body = malloc(8192);
    int used = sprintf(body, "{\"prompt\":[1");
    for (int i = 1; i < 513; i++)
        used += sprintf(body + used, ",1");
    strcpy(body + used, "]}");
    cr_assert_eq(api_parse(&api, API_COMPLETIONS, body, strlen(body), &request, &error), -1);
    cr_expect_str_eq(error.param, "prompt");
    cr_expect_not_null(strstr(error.message, "513"), "%s", error.message);
    cr_expect_not_null(strstr(error.message, "512"), "%s", error.message);
    used = sprintf(body, "{\"prompt\":\"");
    memset(body + used, 'x', 5000);
    strcpy(body + used + 5000, "\"}");
    cr_assert_eq(api_parse(&api, API_COMPLETIONS, body, strlen(body), &request, &error), -1);
    cr_expect_str_eq(error.code, "context_length_exceeded");
}

Test(api, the_answer_may_fill_what_the_prompt_leaves, .init = set_up)
{
    completion("{\"prompt\":\"ab\",\"max_tokens\":510}");
    cr_expect_eq(request.max_tokens, 510);
}

Test(api, the_cache_limits_what_the_model_would_allow, .init = set_up)
{
    api.tokens_max = 100;
    const char *body = "{\"prompt\":\"ab\",\"max_tokens\":99}";
    cr_assert_eq(api_parse(&api, API_COMPLETIONS, body, strlen(body), &request, &error), -1);
    cr_expect_not_null(strstr(error.message, "may be 100"), "%s", error.message);
}

Test(api, a_body_with_too_many_values_is_refused_and_the_next_one_parsed, .init = set_up)
{
    size_t size = 3u << 20;
    char *body = malloc(size + 1);
    body[0] = '[';
    for (size_t i = 1; i + 2 < size; i += 3)
        memcpy(body + i, "{},", 3);
    strcpy(body + size - 3, "1]");
    cr_assert_eq(api_parse(&api, API_COMPLETIONS, body, strlen(body), &request, &error), -1);
    cr_expect_eq(error.status, 413, "%d %s", error.status, error.message);
    completion("{\"prompt\":\"ab\"}");
}

Test(api, a_deeply_nested_body_is_refused, .init = set_up)
{
    char *body = malloc(20001);
    memset(body, '[', 20000);
    body[20000] = '\0';
    cr_assert_eq(api_parse(&api, API_COMPLETIONS, body, 20000, &request, &error), -1);
    cr_expect_eq(error.status, 400);
}

Test(api, errors_are_valid_json_whatever_they_quote, .init = set_up)
{
    char text[API_ERROR_JSON_MAX];
    const char *body = "{\"prompt\":\"a\",\"model\":\"\\\"\\u0000\xf0\x9f\x98\x80 \\n\"}";
    cr_assert_eq(api_parse(&api, API_COMPLETIONS, body, strlen(body), &request, &error), -1);
    error.message[20] = (char)0xf0; /* as if cut within a character */
    struct json_writer w = {text, 0, sizeof(text)};
    api_write_error(&w, &error);
    json_t *json = json_loadb(text, w.size, 0, NULL);
    cr_assert_not_null(json, "%.*s", (int)w.size, text);
    json_t *object = json_object_get(json, "error");
    cr_expect(json_is_string(json_object_get(object, "message")));
    cr_expect_str_eq(json_string_value(json_object_get(object, "param")), "model");
    cr_expect_str_eq(json_string_value(json_object_get(object, "code")), "model_not_found");
}

Test(api, tokenizes_and_back, .init = set_up)
{
    static char text[65536];
    struct json_writer w = {text, 0, sizeof(text)};
    const char *body = "{\"prompt\":\"hello \xe2\x82\xac\"}";
    cr_assert_eq(api_tokenize(&api, body, strlen(body), &w, &error), 0);
    text[w.size] = '\0';
    cr_expect_str_eq(text, "{\"count\":5,\"max_model_len\":512,\"tokens\":[262,35,229,133,175]}");
    const char *ids = "{\"tokens\":[262,35,229,133,175,2,229]}";
    w.size = 0;
    cr_assert_eq(api_detokenize(&api, ids, strlen(ids), &w, &error), 0);
    text[w.size] = '\0';
    cr_expect_str_eq(text, "{\"prompt\":\"hello \xe2\x82\xac\xef\xbf\xbd\"}");
    const char *wrong = "{\"tokens\":[264]}";
    w.size = 0;
    cr_assert_eq(api_detokenize(&api, wrong, strlen(wrong), &w, &error), -1);
    cr_expect_str_eq(error.param, "tokens");
}

static void expect_tokens(const char *body, const char *tokens)
{
    static char text[65536];
    struct json_writer w = {text, 0, sizeof(text)};
    cr_assert_eq(api_tokenize(&api, body, strlen(body), &w, &error), 0, "%s: %s", body, error.message);
    text[w.size] = '\0';
    cr_expect_str_eq(text, tokens, "%s: %s", body, text);
}

Test(api, tokenizes_a_chat_as_its_template_writes_it, .init = set_up)
{
    char tokens[256] = "";
    chat("{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}");
    int size =
        snprintf(tokens, sizeof(tokens), "{\"count\":%u,\"max_model_len\":512,\"tokens\":[", request.prompt_tokens);
    for (uint32_t i = 0; i < request.prompt_tokens; i++)
        size += snprintf(tokens + size, sizeof(tokens) - (size_t)size, "%s%u", i > 0 ? "," : "", request.prompt[i]);
    snprintf(tokens + size, sizeof(tokens) - (size_t)size, "]}");
    cr_assert_gt(request.prompt_tokens, 3);
    expect_tokens("{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}", tokens);
}

Test(api, tokenizing_is_of_the_model_that_there_is, .init = set_up)
{
    static char text[4096];
    static const char *const bodies[] = {"{\"prompt\":\"a\",\"model\":\"other\"}",
                                         "{\"tokens\":[1],\"model\":\"other\"}"};
    for (size_t i = 0; i < ARRAY_COUNT(bodies); i++) {
        struct json_writer w = {text, 0, sizeof(text)};
        cr_expect_eq((i == 0 ? api_tokenize : api_detokenize)(&api, bodies[i], strlen(bodies[i]), &w, &error), -1);
        cr_expect(error.status == 404 && strcmp(error.param, "model") == 0, "%s", error.message);
    }
}

Test(api, the_begin_token_is_in_front_unless_the_client_wants_none, .init = set_up_with_begin)
{
    completion("{\"prompt\":\"hello\"}");
    cr_expect(request.prompt_tokens == 2 && request.prompt[0] == TINY_IM_START && request.prompt[1] == TINY_HELLO);
    expect_tokens("{\"prompt\":\"hello\"}", "{\"count\":2,\"max_model_len\":512,\"tokens\":[1,262]}");
    expect_tokens("{\"prompt\":\"hello\",\"add_special_tokens\":true}",
                  "{\"count\":2,\"max_model_len\":512,\"tokens\":[1,262]}");
    expect_tokens("{\"prompt\":\"hello\",\"add_special_tokens\":false}",
                  "{\"count\":1,\"max_model_len\":512,\"tokens\":[262]}");
    expect_tokens("{\"prompt\":\"\",\"add_special_tokens\":false}",
                  "{\"count\":0,\"max_model_len\":512,\"tokens\":[]}");
    /* what the text itself begins with stays */
    expect_tokens("{\"prompt\":\"<|im_start|>\",\"parse_special\":true,\"add_special_tokens\":false}",
                  "{\"count\":1,\"max_model_len\":512,\"tokens\":[1]}");
}

Test(api, a_completion_may_do_without_the_begin_token, .init = set_up_with_begin)
{
    completion("{\"prompt\":[\"hello\",\"he\"],\"add_special_tokens\":false}");
    cr_expect(request.prompt_tokens == 1 && request.prompt[0] == TINY_HELLO);
    cr_expect_eq(request.unknown_fields, 0);
    cr_assert_eq(api_next_prompt(&api, &request, &error), 0);
    cr_expect(request.prompt_tokens == 1 && request.prompt[0] == TINY_HE);
    completion("{\"prompt\":[7],\"add_special_tokens\":false}"); /* ids are as they are */
    cr_expect(request.prompt_tokens == 1 && request.prompt[0] == 7);
    /* the longest, and one that is longer by one */
    char body[1024];
    snprintf(body, sizeof(body), "{\"prompt\":\"%0512d\",\"add_special_tokens\":false,\"echo\":true,\"max_tokens\":0}",
             0);
    completion(body);
    cr_expect_eq(request.prompt_tokens, 512);
    snprintf(body, sizeof(body), "{\"prompt\":\"%0513d\",\"add_special_tokens\":false,\"echo\":true,\"max_tokens\":0}",
             0);
    cr_expect_eq(api_parse(&api, API_COMPLETIONS, body, strlen(body), &request, &error), -1);
    cr_expect_not_null(strstr(error.message, "at least 513 tokens"), "%s", error.message);
}

Test(api, a_model_without_a_begin_token_has_none_to_leave_out, .init = set_up)
{
    expect_tokens("{\"prompt\":\"hello\",\"add_special_tokens\":false}",
                  "{\"count\":1,\"max_model_len\":512,\"tokens\":[262]}");
}
