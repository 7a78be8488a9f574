/* Local shell: which process a configuration file means, ispyd's way. It ends with a target, that
 * of connect, and the program goes on as if its socket had been given; or without one.
 *
 *   [ispyd]                            (manhole) servers
 *   listen = /tmp/shop-%(pid)s.sock    1: (1, '/tmp/shop-4711.sock')
 *                                      (manhole) connect 1
 *
 * The file is the one that install(config=...) reads over there. All that is wanted of it here is
 * where to listen: "/path/%(pid)s", where any number may stand for the marker, or "host:port". So
 * it is read for its sections and that key alone; whether the rest is right is install()'s
 * business.
 * To add a command: a row in local_commands[], and its case in obey_locally().
 */
#ifndef MANHOLE_CLI_LOCAL_SHELL_C
#define MANHOLE_CLI_LOCAL_SHELL_C

#include "editor.c"
#include "processes.c"

static const char local_prompt[] = "(manhole) ";
static const char blanks[] = " \t\r\n";

/* ---- The file ---------------------------------------------------------------------- */

/* What the file says of where to listen. */
struct config {
    const char *name;     /* of the file */
    struct buffer listen; /* owned */
    bool has_section;     /* [manhole] or [ispyd] */
    bool is_in_section;   /* while it is read: the line is below that */
    bool is_in_listen;    /* and a listen of which nothing has come yet */
};

/* Cuts off the blanks and the comment at a line's end, which begins with " ;" as in ispyd. Returns
 * where the line begins. */
static char *
trim(char *line)
{
    line += strspn(line, blanks);
    for (char *c = strchr(line, ';'); c != NULL; c = strchr(c + 1, ';')) {
        if (c == line || strchr(blanks, c[-1]) != NULL) {
            *c = '\0';
            break;
        }
    }
    size_t length = strlen(line);
    while (length > 0 && strchr(blanks, line[length - 1]) != NULL) {
        line[--length] = '\0';
    }
    return line;
}

/* Takes a line of the file. A value may go on, or begin, in lines that are indented. Of a listen
 * with several places the first one is meant. */
static void
parse_config_line(struct config *config, char *line, int number)
{
    bool is_indented = line[0] == ' ' || line[0] == '\t';

    line = trim(line);
    if (line[0] == '\0' || line[0] == '#') {
        return;
    }
    if (config->is_in_listen && is_indented) {
        append_text(&config->listen, line);
        config->is_in_listen = false;
        return;
    }
    config->is_in_listen = false;
    if (line[0] == '[') {
        config->is_in_section =
            strcmp(line, "[manhole]") == 0 || strcmp(line, "[ispyd]") == 0;
        config->has_section = config->has_section || config->is_in_section;
        return;
    }
    char *value = strpbrk(line, "=:");
    if (value == NULL && !is_indented) {
        fail(STATUS_TROUBLE, "%s, line %d: %s is neither [section] nor key = value",
             quote(config->name).text, number, quote(line).text);
    }
    if (value == NULL || !config->is_in_section) {
        return;
    }
    *value++ = '\0';
    if (strcasecmp(trim(line), "listen") == 0) {
        empty(&config->listen);
        append_text(&config->listen, value + strspn(value, blanks));
        config->is_in_listen = config->listen.length == 0;
    }
}

/* Reads the file; ends the program when it is wrong. */
static struct config
read_config(const char *name)
{
    static const char byte_order_mark[] =
        "\xef\xbb\xbf"; /* some editors begin a file so */
    struct config config = {.name = name};
    OWNED_BUFFER content = {.data = NULL};
    int number = 0;

    if (!read_file(name, &content)) {
        fail(STATUS_TROUBLE, "cannot read %s: %m", quote(name).text);
    }
    if (strncmp(text_of(&content), byte_order_mark, 3) == 0) {
        drop(&content, 3);
    }
    char *rest = content.data;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        parse_config_line(&config, line, ++number);
    }
    if (!config.has_section) {
        fail(STATUS_TROUBLE, "%s has no section [manhole] or [ispyd]", quote(name).text);
    }
    if (config.listen.length == 0) {
        append_text(&config.listen, "/tmp/manhole-%(pid)s");
    }
    return config;
}

/* ---- Where it leads ---------------------------------------------------------------- */

static const char pid_marker[] = "%(pid)s";

/* pid: 0 where the file does not tell. Who answers at the path is who is meant, as if it had been
 * given. */
static void
add_server(struct processes *servers, const char *path, pid_t pid, int port)
{
    struct process server = {.target = {.pid = pid, .by_path = true, .port = port},
                             .is_alive = true};

    if (strlen(path) >= SOCKET_PATH_SIZE) {
        fail(STATUS_TROUBLE, "%s is longer than the path of a socket can be",
             quote(path).text);
    }
    (void)snprintf(server.target.path, sizeof(server.target.path), "%s", path);
    add_process(servers, &server);
}

/* The number that a path has where the template has its marker, each time the same; 0: it is not of
 * this template. */
static pid_t
match_path(const char *template, const char *path)
{
    pid_t pid = 0;

    while (*template != '\0') {
        if (strncmp(template, pid_marker, strlen(pid_marker)) == 0) {
            char *end = NULL;
            long number = is_digit(*path) ? strtol(path, &end, 10) : 0;
            if (number < 1 || number > INT_MAX || (pid != 0 && pid != number)) {
                return 0;
            }
            pid = (pid_t)number;
            path = end;
            template += strlen(pid_marker);
        }
        else if (*template ++ != *path++) {
            return 0;
        }
    }
    return *path == '\0' ? pid : 0;
}

/* Adds the sockets that there are of a template, whatever process's. */
static void
find_sockets(const char *template, struct processes *servers)
{
    OWNED_BUFFER pattern = {.data = NULL};
    glob_t matches = {.gl_pathc = 0}; /* owned */

    for (const char *c = template; *c != '\0'; c++) {
        bool is_marker = strncmp(c, pid_marker, strlen(pid_marker)) == 0;
        append_text(&pattern, !is_marker && strchr("*?[\\", *c) != NULL ? "\\" : "");
        append(&pattern, is_marker ? "*" : c, 1);
        c += is_marker ? strlen(pid_marker) - 1 : 0;
    }
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there is one thread */
    int result = glob(text_of(&pattern), GLOB_NOSORT, NULL, &matches);
    if (result == GLOB_NOSPACE) {
        fail(STATUS_TROUBLE, "out of memory");
    }
    for (size_t i = 0; result == 0 && i < matches.gl_pathc; i++) {
        pid_t pid = match_path(template, matches.gl_pathv[i]);
        if (pid != 0 && is_socket(matches.gl_pathv[i])) {
            add_server(servers, matches.gl_pathv[i], pid, 0);
        }
    }
    if (result == 0) {
        globfree(&matches);
    }
}

/* The port of "host:port"; ends the program when there is none. */
static int
parse_port(const struct config *config)
{
    const char *listen = config->listen.data;
    const char *colon = strrchr(listen, ':');
    long port = 0;

    if (colon == NULL || colon == listen || !is_digit(colon[1]) ||
        !parse_int(colon + 1, &port) || port < 1 || port > 65535) {
        fail(STATUS_TROUBLE,
             "%s: listen must be the absolute path of a socket or host:port, not %s",
             quote(config->name).text, quote(listen).text);
    }
    return (int)port;
}

/* Where the file's listen may lead, and whether somebody is there. Looked for anew each time, for
 * processes come and go while one looks at the list. */
static struct processes
find_servers(const struct config *config)
{
    const char *listen = config->listen.data;
    struct processes servers = {.list = NULL};

    if (listen[0] != '/') {
        add_server(&servers, listen, 0, parse_port(config));
        freeaddrinfo(find_addresses(&servers.list[0].target)); /* of this machine alone */
    }
    else if (strstr(listen, pid_marker) != NULL) {
        find_sockets(listen, &servers);
    }
    else {
        add_server(&servers, listen, 0, 0);
    }
    sort_processes(&servers);
    ask_all(&servers);
    return servers;
}

/* ---- Commands ---------------------------------------------------------------------- */

/* The shell, and what it has come to. */
struct local_shell {
    struct config config;
    struct processes servers;     /* owned; as they were listed last */
    const struct process *chosen; /* one of them, by connect */
    bool is_over;
};

enum local_command { CONNECT, EXIT, HELP, SERVERS, LOCAL_COMMANDS };

static const struct {
    const char *name;
    const char *arguments; /* as help shows them */
    const char *help;
} local_commands[LOCAL_COMMANDS] = {
    [CONNECT] = {"connect", " [N]",
                 "Connect to the Nth server of the list, or to the only one there is."},
    [EXIT] = {"exit", "", "Leave."},
    [HELP] = {"help", " [COMMAND]", "List the commands, or say what one does."},
    [SERVERS] = {"servers", "", "List the processes that can be connected to."},
};

/* As Python prints the pairs of which ispyd's list consists: family and address. */
static void
list_servers(struct local_shell *shell)
{
    static const char *const remarks[] = {[CLOSED] = " dead",
                                          [DEAD] = " dead",
                                          [DENIED] = " not for you",
                                          [SILENT] = " silent",
                                          [ANSWERS] = ""};
    free(shell->servers.list);
    shell->servers = find_servers(&shell->config);
    for (size_t i = 0; i < shell->servers.count; i++) {
        struct target target = shell->servers.list[i].target;
        const char *remark = remarks[shell->servers.list[i].condition];
        if (target.port == 0) {
            (void)printf("%zu: (%d, %s)%s\n", i + 1, AF_UNIX, quote(target.path).text,
                         remark);
            continue;
        }
        *strrchr(target.path, ':') = '\0';
        (void)printf("%zu: (%d, (%s, %d))%s\n", i + 1, AF_INET, quote(target.path).text,
                     target.port, remark);
    }
}

/* What connect was told; says what is wrong with it and returns NULL. */
static struct process *
select_server(const struct local_shell *shell, const char *argument)
{
    long number = 1;

    if (shell->servers.count == 0) {
        (void)printf("No servers to connect to: there is no socket like %s.\n",
                     quote(shell->config.listen.data).text);
    }
    else if (argument[0] == '\0' && shell->servers.count > 1) {
        (void)printf("Multiple servers, which should be used? \"servers\" lists them.\n");
    }
    else if (argument[0] != '\0' && !parse_int(argument, &number)) {
        (void)printf("Server selection not an integer.\n");
    }
    else if (number < 1 || number > (long)shell->servers.count) {
        (void)printf("Invalid server selected: there are 1 to %zu.\n",
                     shell->servers.count);
    }
    else {
        return &shell->servers.list[number - 1];
    }
    return NULL;
}

/* Ends the shell when somebody is there. One that is silent may only be busy: the program then
 * waits for it as for any other. */
static void
connect_server(struct local_shell *shell, const char *argument)
{
    struct process *server = select_server(shell, argument);
    struct processes alone = {.list = server, .count = 1};

    if (server == NULL) {
        return;
    }
    ask_all(&alone);
    if (server->condition == DEAD || server->condition == CLOSED) {
        (void)printf("Nobody answers at %s any more; \"servers\" looks again.\n",
                     quote(server->target.path).text);
        return;
    }
    shell->chosen = server;
    shell->is_over = true;
}

/* Returns LOCAL_COMMANDS where there is none of that name. */
static enum local_command
find_local_command(const char *name)
{
    int i = 0;
    while (i < LOCAL_COMMANDS && strcmp(local_commands[i].name, name) != 0) {
        i++;
    }
    return (enum local_command)i;
}

/* As Python's module cmd, and so ispyd, lays it out. */
static void
help_locally(const char *topic)
{
    enum local_command command = find_local_command(topic);

    if (command != LOCAL_COMMANDS) {
        (void)printf("%s%s\n    %s\n", topic, local_commands[command].arguments,
                     local_commands[command].help);
    }
    else if (topic[0] != '\0') {
        (void)printf("*** No help on %s\n", quote(topic).text);
    }
    else {
        (void)printf("\nDocumented commands (type help <topic>):\n"
                     "========================================\n");
        for (size_t i = 0; i < LOCAL_COMMANDS; i++) {
            (void)printf("%s%s", i == 0 ? "" : "  ", local_commands[i].name);
        }
        (void)printf("\n\n");
    }
}

#ifdef HAVE_LIBEDIT
/* Adds what the line may become: a command, and behind help any of them. */
static void
complete_command(const char *start, struct buffer *matches)
{
    const char *name = start + strspn(start, blanks);
    bool is_topic = strncmp(name, "help ", 5) == 0 || strncmp(name, "? ", 2) == 0;

    if (is_topic) {
        name += strcspn(name, blanks);
        name += strspn(name, blanks);
    }
    for (size_t i = 0; i < LOCAL_COMMANDS; i++) {
        if (strncmp(local_commands[i].name, name, strlen(name)) == 0) {
            append_format(matches, "%.*s%s%s\n", (int)(name - start), start,
                          local_commands[i].name,
                          is_topic || local_commands[i].arguments[0] == '\0' ? "" : " ");
        }
    }
}
#endif

/* Runs a line: a word, and its argument. */
static void
obey_locally(struct local_shell *shell, char *line)
{
    char *word = line + strspn(line, blanks);
    char *argument = word + strcspn(word, blanks);

    if (*argument != '\0') {
        *argument++ = '\0';
        argument += strspn(argument, blanks);
        argument[strcspn(argument, blanks)] = '\0';
    }
    switch (find_local_command(strcmp(word, "?") == 0 ? "help" : word)) {
    case CONNECT:
        connect_server(shell, argument);
        break;
    case EXIT:
        shell->is_over = true;
        break;
    case HELP:
        help_locally(argument);
        break;
    case SERVERS:
        list_servers(shell);
        break;
    default:
        if (word[0] != '\0') {
            (void)printf("*** Unknown syntax: %s; \"help\" lists the commands\n",
                         quote(word).text);
        }
    }
}

/* ---- The shell --------------------------------------------------------------------- */

/* Reads a line from standard input and no byte more, for those behind it may be the server's.
 * Returns false at the end. */
static bool
read_line(struct buffer *line)
{
    struct pollfd typed = {.fd = terminal.input, .events = POLLIN};
    char byte = 0;
    ssize_t count = 0;

    (void)printf("%s", local_prompt);
    (void)fflush(stdout);
    while (byte != '\n' && ((count = read(terminal.input, &byte, 1)) == 1 ||
                            (count < 0 && is_passing(errno)))) {
        append(line, &byte, count == 1 ? 1 : 0);
        if (count < 0) {
            (void)poll(&typed, 1, -1);
        }
    }
    if (count < 0) {
        fail(STATUS_TROUBLE, "cannot read standard input: %m");
    }
    if (line->length == 0) {
        (void)printf("\n");
    }
    return line->length > 0;
}

/* The same by the editor, where there can be one. */
static bool
ask_line(struct buffer *line)
{
#ifdef HAVE_LIBEDIT
    if (open_editor()) {
        begin_editing();
        return type_local_line(local_prompt, complete_command, line);
    }
#endif
    return read_line(line);
}

/* Runs the shell on a configuration file. Returns whether it has ended with connect, and then to
 * what; the file may mean a process that is not there when it begins. */
static bool
choose_server(const char *config, struct target *target)
{
    struct local_shell shell = {.config = read_config(config)};
    OWNED_BUFFER line = {.data = NULL};

    find_history();
    shell.servers = find_servers(&shell.config);
    while (!shell.is_over && ask_line(&line)) {
        obey_locally(&shell, line.data);
        (void)fflush(stdout);
        empty(&line);
    }
    bool is_chosen = shell.chosen != NULL;
    if (is_chosen) {
        *target = shell.chosen->target;
    }
    free_buffer(&shell.config.listen);
    free(shell.servers.list);
    return is_chosen;
}

#endif /* MANHOLE_CLI_LOCAL_SHELL_C */
