/* TCP and Telnet: whose socket is at the other end, and what its bytes mean. */
#include "../manhole.c"

#include "unit.h"

/* ---- Addresses -------------------------------------------------------------------------- */

/* Parses HOST without a port; IPv6 has a colon in it. */
static union address
address_of(const char *host, uint16_t port)
{
    union address address = {.any.sa_family = AF_INET};
    if (strchr(host, ':') != NULL) {
        address.v6 = (struct sockaddr_in6){.sin6_family = AF_INET6};
        assert_int_equal(inet_pton(AF_INET6, host, &address.v6.sin6_addr), 1);
    }
    else {
        assert_int_equal(inet_pton(AF_INET, host, &address.v4.sin_addr), 1);
    }
    address.v4.sin_port = htons(port);
    return address;
}

static const struct {
    const char *host;
    const char *text; /* with the port 65535 */
    bool loopback;
} addresses[] = {
    {"127.0.0.1", "127.0.0.1:65535", true},
    {"127.255.0.7", "127.255.0.7:65535", true},
    {"128.0.0.1", "128.0.0.1:65535", false},
    {"0.0.0.0", "0.0.0.0:65535", false},
    {"255.255.255.255", "255.255.255.255:65535", false},
    {"::1", "[::1]:65535", true},
    {"::", "[::]:65535", false},
    {"::2", "[::2]:65535", false},
    {"::ffff:127.0.0.1", "[::ffff:127.0.0.1]:65535", false},
    {"2001:db8:1111:2222:3333:4444:5555:6666",
     "[2001:db8:1111:2222:3333:4444:5555:6666]:65535", false},
};

static void
only_this_machines_addresses_are_loopback(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(addresses); i++) {
        union address address = address_of(addresses[i].host, 65535);
        char text[ADDRESS_SIZE];
        format_address(&address, text);
        assert_string_equal(text, addresses[i].text);
        if (is_loopback(&address) != addresses[i].loopback) {
            fail_msg("%s", text);
        }
    }
}

static void
host_and_port_are_told_apart(void **state)
{
    static const struct {
        const char *text;
        const char *host; /* NULL: it is no address */
        uint16_t port;
    } rows[] = {
        {"localhost:3000", "localhost", 3000},
        {"[::1]:0", "::1", 0},
        {"a:65535", "a", 65535},
        {"[a]:1", "a", 1},
        {"a:65536", NULL, 0},
        {"a:123456", NULL, 0},
        {"a:", NULL, 0},
        {"a:-1", NULL, 0},
        {"a:1x", NULL, 0},
        {"a: 1", NULL, 0},
        {":1", NULL, 0},
        {"[]:1", NULL, 0},
        {"[a:1", NULL, 0},
        {"::1:3000", NULL, 0},
        {"3000", NULL, 0},
        {":", NULL, 0},
        {"]:1", NULL, 0},
        {"", NULL, 0},
        {"longer-than-there-is-room:1", NULL, 0},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        char host[16] = "";
        uint16_t port = 0;
        bool is_one = split_address(rows[i].text, host, sizeof(host), &port);
        if (is_one != (rows[i].host != NULL) || port != rows[i].port ||
            (is_one && strcmp(host, rows[i].host) != 0)) {
            fail_msg("'%s' gives '%s' and %d", rows[i].text, host, port);
        }
    }
}

/* ---- Peers ------------------------------------------------------------------------------ */

struct connection {
    int client;
    int server;
};

/* A TCP connection within this process. */
static struct connection
make_connection(const char *host, int client_family)
{
    struct connection made;
    union address address = address_of(host, 0);
    union address mapped;
    socklen_t size = sizeof(address);
    int listener = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, &address.any, address_size(&address)), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, &address.any, &size), 0);
    made.client = socket(client_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client_family == address.any.sa_family) {
        mapped = address;
    }
    else {
        mapped = address_of("::ffff:127.0.0.1", ntohs(address.v4.sin_port));
    }
    assert_int_equal(connect(made.client, &mapped.any, address_size(&mapped)), 0);
    made.server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(made.server >= 0);
    (void)close(listener);
    return made;
}

static void
end_connection(const struct connection *connection)
{
    (void)close(connection->client);
    (void)close(connection->server);
}

static const struct {
    const char *host;
    int client_family;
} connections[] = {
    {"127.0.0.1", AF_INET},
    {"127.1.2.3", AF_INET},
    {"::1", AF_INET6},
    {"127.0.0.1", AF_INET6}, /* the client's is a socket for both, as Java's are */
};

static void
user_of_a_client_is_found(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(connections); i++) {
        struct connection made =
            make_connection(connections[i].host, connections[i].client_family);
        struct peer peer = {.uid = 12345};
        assert_int_equal(read_tcp_peer(made.server, &peer), 0);
        assert_int_equal(peer.uid, geteuid());
        assert_int_equal(peer.pid, 0);
        assert_true(peer.address[0] != '\0');
        assert_false(is_far_end_closed(made.server));
        end_connection(&made);
    }
}

/* A socket's user is who made it. */
static void
both_ways_to_ask_tell_the_same(void **state)
{
    int (*const ways[])(const struct ends *, struct far_socket *) = {ask_diagnostics,
                                                                     search_proc};
    if (geteuid() != 0) {
        SKIP_UNIT_TEST("needs root, to be two users");
    }
    (void)state;
    for (size_t i = 0; i < 3 * Py_ARRAY_LENGTH(ways); i++) {
        struct connection made;
        struct ends ends;
        struct far_socket found = {0};
        assert_int_equal(seteuid(65534), 0);
        made = make_connection(connections[i / 2].host, connections[i / 2].client_family);
        assert_int_equal(seteuid(0), 0);
        assert_int_equal(read_ends(made.server, &ends), 0);
        assert_int_equal(ways[i % 2](&ends, &found), 0);
        assert_int_equal(found.uid, 65534);
        assert_int_equal(found.state, TCP_ESTABLISHED);
        assert_true(is_held(&found));
        end_connection(&made);
    }
}

static void
client_that_has_closed_is_nobody(void **state)
{
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(connections); i++) {
        struct connection made =
            make_connection(connections[i].host, connections[i].client_family);
        struct peer peer = {.uid = 0};
        assert_int_equal(send(made.client, "code\n", 5, 0), 5);
        (void)close(made.client);
        made.client = -1;
        assert_int_equal(read_tcp_peer(made.server, &peer), -1);
        assert_int_equal(peer.uid, (uid_t)-1);
        assert_true(is_far_end_closed(made.server));
        end_connection(&made);
    }
}

static void
client_that_only_reads_on_is_still_there(void **state)
{
    struct connection made = make_connection("127.0.0.1", AF_INET);
    struct peer peer = {.uid = 12345};
    (void)state;
    assert_int_equal(shutdown(made.client, SHUT_WR), 0);
    assert_int_equal(read_tcp_peer(made.server, &peer), 0);
    assert_int_equal(peer.uid, geteuid());
    assert_false(is_far_end_closed(made.server));
    end_connection(&made);
}

static void
client_that_has_reset_the_connection_is_nobody(void **state)
{
    const struct linger none = {.l_onoff = 1, .l_linger = 0};
    struct connection made = make_connection("127.0.0.1", AF_INET);
    struct peer peer = {.uid = 0};
    (void)state;
    (void)setsockopt(made.client, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
    (void)close(made.client);
    made.client = -1;
    assert_int_equal(read_tcp_peer(made.server, &peer), -1);
    assert_int_equal(peer.uid, (uid_t)-1);
    end_connection(&made);
}

static void
lines_of_proc_that_make_no_sense_are_nobodys(void **state)
{
    static const char *const lines[] = {
        "",
        "\n",
        "  sl  local_address rem_address   st tx_queue\n",
        "   0: 0100007F:0001 0100007F:0002 01 00000000:00000000 00:00000000 00000000\n",
        "   0: 0100007F:0002 0100007F:0001 01 0:0 0:0 0 7 0 9 1 0 20 4\n",
    };
    char good[] = "   0: 0100007F:0001 0100007F:0002 01 0:0 0:0 0   7  0 9 1 0 20 4\n";
    struct far_socket found = {0};
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(lines); i++) {
        char line[128];
        (void)snprintf(line, sizeof(line), "%s", lines[i]);
        assert_false(parse_proc_line(line, "0100007F:0001", "0100007F:0002", &found));
    }
    assert_true(parse_proc_line(good, "0100007F:0001", "0100007F:0002", &found));
    assert_int_equal(found.uid, 7);
    assert_int_equal(found.inode, 9);
    assert_int_equal(found.state, TCP_ESTABLISHED);
}

/* ---- Telnet ------------------------------------------------------------------------------ */

/* The text that comes of bytes; <R> for a refusal, <B> for a wish for binary, <E> for the end, <I>
 * for an interrupt. */
static void
decode_all(const char *bytes, size_t length, char *text)
{
    struct telnet telnet = {.state = TELNET_TEXT};
    text[0] = '\0';
    for (size_t i = 0; i < length; i++) {
        enum telnet_event event = decode_byte(&telnet, (unsigned char)bytes[i]);
        if (telnet.interrupted) {
            assert_int_equal(telnet.length, 2);
            telnet.length = 0;
            (void)strcat(text, "<I>");
        }
        (void)strncat(text, telnet.text, telnet.length);
        telnet.length = 0;
        telnet.interrupted = false;
        (void)strcat(text, event == TELNET_END       ? "<E>"
                           : event == TELNET_REFUSE  ? "<R>"
                           : event == TELNET_NOTHING ? ""
                                                     : "<B>");
    }
}

#define BYTES(literal) (literal), sizeof(literal) - 1

static void
telnet_is_taken_out_of_the_text(void **state)
{
    static const struct {
        const char *bytes;
        size_t length;
        const char *text;
    } rows[] = {
        {BYTES("a\nb\r\nc\r\0d\re\r\r\n\n"), "a\nb\nc\nd\ne\n\n\n"},
        {BYTES("\xff\xfd\x03"
               "a\xff\xfb\x18"
               "b"),
         "<R>a<R>b"},
        {BYTES("\xff\xfc\x03"
               "a\xff\xfe\x18"
               "b"),
         "ab"},
        {BYTES("a\xff\xff"
               "b"),
         "a\xff"
         "b"},
        {BYTES("a\xff\xfa\x18\x01\xff\xff\r\n\x03\xff\xf0"
               "b"),
         "ab"},
        {BYTES("a\xff\xf1\xff\xf9\xff\xf2"
               "b"),
         "ab"},
        {BYTES("a\x03"
               "b\xff\xf4"
               "c\xff\xf3"),
         "a<I>b<I>c<I>"},
        {BYTES("\x04"), "<E>"},
        {BYTES("a\x04"
               "b\r\x04"),
         "a\x04"
         "b\n<E>"},
        {BYTES("a\xff\xec"), "a<E>"},
        {BYTES("a\x03\x04"), "a<I><E>"},
        {BYTES("a\r\xff\xfd\x06\nb"), "a\n<R>\nb"},
        {BYTES("a\xff"), "a"},
        {BYTES("\xff\xfb\0a\xff\xfb\0\xff\xfd\0"), "<B>a<R>"},
        /* As a telnet without binary sends characters. */
        {BYTES("\xe6\xff\xf3\xff\xfd\6\xac"), "\xe6\x9c<R>\xac"},
        {BYTES("\xc3\xff\xf4\xff\xfd\6\xff\xf4"), "\xc3\x83<R><I>"},
        {BYTES("\xc3\xff\xf5.\xc3\xff\xed.\xc3\xff\xec."), "\xc3\x8f.\xc3\x9a.\xc3\x84."},
        {BYTES("\xf0\x9f\xff\xf3\xff\xf4\xff\xf4"), "\xf0\x9f\x9c\x83<I>"},
        {BYTES("\xc3.\xff\xf4"), "\xc3.<I>"},
        {BYTES("\xc3\3"), "\xc3<I>"},
        {BYTES("\x83\xff\xf4"), "\x83<I>"},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        char text[64];
        decode_all(rows[i].bytes, rows[i].length, text);
        if (strcmp(text, rows[i].text) != 0) {
            fail_msg("row %zu gives '%s'", i, text);
        }
    }
}

static void
answer_says_no_to_what_was_asked(void **state)
{
    struct telnet telnet = {.state = TELNET_TEXT};
    (void)state;
    (void)decode_byte(&telnet, TELNET_IAC);
    (void)decode_byte(&telnet, TELNET_DO);
    assert_int_equal(decode_byte(&telnet, 6), TELNET_REFUSE);
    assert_int_equal(telnet.verb, TELNET_WONT);
    assert_int_equal(telnet.option, 6);
    (void)decode_byte(&telnet, TELNET_IAC);
    (void)decode_byte(&telnet, TELNET_WILL);
    assert_int_equal(decode_byte(&telnet, 255), TELNET_REFUSE);
    assert_int_equal(telnet.verb, TELNET_DONT);
    assert_int_equal(telnet.option, 255);
}

static void
only_requests_of_http_are_taken_for_some(void **state)
{
    static const struct {
        const char *text;
        bool is_one;
    } rows[] = {
        {"GET / HTTP/1.1\n", true},
        {"POST /x?y HTTP/1.0\nHost: z\n", true},
        {"CONNECT http://x HTTP/1.1\n", true},
        {"GET /a-path-that-is-too-long-to-be-seen-whole", true},
        {"X / 2\n", false},
        {"X / 2\n# a HTTP/1.1\n", false},
        {"print('GET / HTTP/1.1')\n", false},
        {"get / HTTP/1.1\n", false},
        {" / HTTP/1.1\n", false},
        {"GET\n", false},
        {"GET \n", false},
        {"GET", false},
        {"\n", false},
        {"", false},
    };
    (void)state;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(rows); i++) {
        if (is_http_request(rows[i].text, strlen(rows[i].text)) != rows[i].is_one) {
            fail_msg("%s", rows[i].text);
        }
    }
}

/* As much at once as telnet.text takes, so that it is passed on before the last of it has come. */
DETACHED static void
nothing_of_a_request_is_passed_on(void **state)
{
    static struct session session;
    struct telnet telnet = {.state = TELNET_TEXT};
    unsigned char bytes[4096] = "GET / HTTP/1.1\nimport os\n";
    char passed[16];
    int client[2];
    int plain[2];
    (void)state;
    memset(bytes + strlen((char *)bytes), '\n', sizeof(bytes) - strlen((char *)bytes));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, client), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, plain), 0);
    keep_fd(&session.fd, client[0]);
    keep_fd(&session.plain_fd, plain[0]);
    keep_fd(&session.telnet_fd, plain[1]);
    assert_false(decode_bytes(&session, &telnet, bytes, sizeof(bytes)));
    assert_int_equal(recv(plain[0], passed, sizeof(passed), MSG_DONTWAIT), -1);
    for (size_t i = 0; i < 2; i++) {
        (void)close(client[i]);
        (void)close(plain[i]);
    }
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_this_machines_addresses_are_loopback),
        cmocka_unit_test(host_and_port_are_told_apart),
        cmocka_unit_test(user_of_a_client_is_found),
        cmocka_unit_test(both_ways_to_ask_tell_the_same),
        cmocka_unit_test(client_that_has_closed_is_nobody),
        cmocka_unit_test(client_that_only_reads_on_is_still_there),
        cmocka_unit_test(client_that_has_reset_the_connection_is_nobody),
        cmocka_unit_test(lines_of_proc_that_make_no_sense_are_nobodys),
        cmocka_unit_test(telnet_is_taken_out_of_the_text),
        cmocka_unit_test(answer_says_no_to_what_was_asked),
        cmocka_unit_test(only_requests_of_http_are_taken_for_some),
        cmocka_unit_test(nothing_of_a_request_is_passed_on),
    };
    return RUN_UNIT_TESTS(tests);
}
