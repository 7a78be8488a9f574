/* Text that grows, and the limits of it. */
#include <Python.h>

#include <stdbool.h>

static bool no_memory;

static void *
realloc_or_fail(void *memory, size_t size)
{
    return no_memory ? NULL : realloc(memory, size);
}

#define realloc realloc_or_fail
#include "../manhole.c"
#undef realloc

#include "unit.h"

/* Frees the text. name: of the row, for the message. */
static void
assert_text(const char *name, struct text *text, const char *bytes, size_t length)
{
    if (text->failed || text->bytes == NULL || text->length != length ||
        memcmp(text->bytes, bytes, length) != 0) {
        fail_msg("%s: got '%.*s'", name, (int)text->length, text->bytes);
    }
    free_text(text);
}

static void
text_keeps_every_byte(void **state)
{
    struct text text = {0};
    (void)state;
    for (size_t i = 0; i < 1000; i++) {
        append_bytes(&text, "a\0b", 3);
        append_string(&text, "--");
        append_format(&text, "%03zu", i);
    }
    assert_int_equal(text.length, 8000);
    assert_memory_equal(text.bytes + 7992, "a\0b--999", 8);
    free_text(&text);
    assert_null(text.bytes);
    free_text(&text);
}

static void
text_without_memory_stays_as_it_was(void **state)
{
    struct text text = {0};
    (void)state;
    append_string(&text, "whole");
    no_memory = true;
    append_string(&text, " line that needs more room than there is");
    no_memory = false;
    append_string(&text, "s");
    assert_true(text.failed);
    assert_int_equal(text.length, 5);
    assert_memory_equal(text.bytes, "whole", 5);
    free_text(&text);
}

static void
formatted_piece_is_cut_at_255_bytes(void **state)
{
    struct text text = {0};
    char wanted[255];
    (void)state;
    memset(wanted, ' ', sizeof(wanted));
    append_format(&text, "%300d", 1);
    assert_text("300 bytes", &text, wanted, sizeof(wanted));
}

/* A str, written as in Python, and its bytes. */
static const struct {
    const char *literal;
    const char *bytes;
    size_t length;
} strings[] = {
    {"'a\\0b'", "a\0b", 3},
    {"'caf\\xe9'", "caf\xc3\xa9", 5},
    {"'\\u20ac'", "\xe2\x82\xac", 3},
    {"'\\U0001f40d'", "\xf0\x9f\x90\x8d", 4},
    {"'a\\udcff\\ud800b'", "a\\udcff\\ud800b", 14},
};

ATTACHED static void
str_of_any_kind_has_utf8(void **state)
{
    PyObject *names = PyDict_New();
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(strings); i++) {
        struct text text = {0};
        PyObject *str = PyRun_String(strings[i].literal, Py_eval_input, names, names);
        append_str(&text, str);
        assert_null(PyErr_Occurred());
        assert_text(strings[i].literal, &text, strings[i].bytes, strings[i].length);
        Py_DECREF(str);
    }
    Py_DECREF(names);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_keeps_every_byte),
        cmocka_unit_test(text_without_memory_stays_as_it_was),
        cmocka_unit_test(formatted_piece_is_cut_at_255_bytes),
        cmocka_unit_test(str_of_any_kind_has_utf8),
    };
    int failed = 0;
    Py_InitializeEx(0);
    failed = RUN_UNIT_TESTS(tests);
    return Py_FinalizeEx() < 0 || failed;
}
