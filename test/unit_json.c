/* unit_json.c - whatever is in a file's name, a source line or a thread's name: JSON stays JSON. */
#include "../manhole.c"

#include "unit.h"

#define SLICE(literal)                                                                   \
  {                                                                                      \
    (literal), sizeof(literal) - 1                                                       \
  }

static void
string_is_escaped(void **state)
{
    static const struct {
        struct slice given;
        const char *written;
    } rows[] = {
        {SLICE(""), "\"\""},
        {SLICE("plain"), "\"plain\""},
        {SLICE("\"\\/"), "\"\\\"\\\\/\""},
        {SLICE("\0\n\x1f\x7f"), "\"\\u0000\\u000a\\u001f\\u007f\""},
        {SLICE("\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x8d"),
         "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x8d\""},
        {SLICE("\xff"), "\"\\ufffd\""},
        {SLICE("\x80z"), "\"\\ufffdz\""},
        {SLICE("\xc3"), "\"\\ufffd\""},
        {SLICE("\xc3("), "\"\\ufffd(\""},
        {SLICE("\xe2\x82"), "\"\\ufffd\\ufffd\""},
        {SLICE("\xc0\xaf"), "\"\\ufffd\\ufffd\""},
        {SLICE("\xe0\x9f\xbf"), "\"\\ufffd\\ufffd\\ufffd\""},
        {SLICE("\xed\xa0\x80"), "\"\\ufffd\\ufffd\\ufffd\""},
        {SLICE("\xed\x9f\xbf\xee\x80\x80"), "\"\xed\x9f\xbf\xee\x80\x80\""},
        {SLICE("\xf0\x8f\xbf\xbf"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\""},
        {SLICE("\xf4\x8f\xbf\xbf"), "\"\xf4\x8f\xbf\xbf\""},
        {SLICE("\xf4\x90\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\""},
        {SLICE("\xf5\x80\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\""},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        struct text text = {0};
        append_json_string(&text, rows[i].given);
        append_bytes(&text, "", 1);
        assert_string_equal(text.bytes, rows[i].written);
        free_text(&text);
    }
}

/* What Python's own json makes of it. Returns a new str. */
static PyObject *
load(const struct text *text)
{
    PyObject *json = PyImport_ImportModule("json");
    PyObject *loaded =
        PyObject_CallMethod(json, "loads", "y#", text->bytes, (Py_ssize_t)text->length);
    Py_DECREF(json);
    return loaded;
}

/* Every byte, alone and before another, so that characters are cut everywhere. */
static void
python_loads_whatever_bytes_there_were(void **state)
{
    (void)state;
    Py_Initialize();
    for (int first = 0; first < 256; first++) {
        char bytes[512];
        struct text text = {0};
        PyObject *loaded = NULL;
        for (size_t second = 0; second < 256; second++) {
            bytes[2 * second] = (char)first;
            bytes[2 * second + 1] = (char)second;
        }
        append_json_string(&text, (struct slice){bytes, sizeof(bytes)});
        loaded = load(&text);
        assert_non_null(loaded);
        Py_DECREF(loaded);
        free_text(&text);
    }
}

CHECKED(no_thread_safety_analysis) /* Py_Initialize() attaches */
static void
lone_surrogates_of_a_str_stay_readable(void **state)
{
    struct text text = {0};
    PyObject *str = NULL;
    PyObject *loaded = NULL;
    struct text name;
    (void)state;
    Py_Initialize();
    str = PyUnicode_DecodeUTF8("a\xff\"", 3, "surrogateescape");
    name = copy_str(str);
    append_json_text(&text, &name);
    loaded = load(&text);
    assert_non_null(loaded);
    assert_int_equal(PyUnicode_CompareWithASCIIString(loaded, "a\\udcff\""), 0);
    Py_DECREF(str);
    Py_DECREF(loaded);
    free_text(&name);
    free_text(&text);
}

static void
name_that_is_not_known_is_null(void **state)
{
    char empty[] = "";
    struct {
        struct text name;
        const char *wanted;
    } rows[] = {
        {{.bytes = NULL}, "\"name\": null,"},
        {{.bytes = empty}, "\"name\": \"\","},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        struct text text = {0};
        begin_json_thread(&text, &(struct thread_stack){.name = rows[i].name});
        append_bytes(&text, "", 1);
        assert_non_null(strstr(text.bytes, rows[i].wanted));
        free_text(&text);
    }
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(string_is_escaped),
        cmocka_unit_test(python_loads_whatever_bytes_there_were),
        cmocka_unit_test(lone_surrogates_of_a_str_stay_readable),
        cmocka_unit_test(name_that_is_not_known_is_null),
    };
    return RUN_UNIT_TESTS(tests);
}
