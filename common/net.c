/* SPDX-License-Identifier: Apache-2.0 */
#include "common/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/assert.h"
#include "common/clock.h"
#include "common/net_internal.h"
#include "dlblk/error.h"

#define RECEIVE_BUFFER_BYTES     (256u << 10)
#define RECEIVE_BUFFER_BYTES_MIN 8192u
#define SOCKET_BUFFER_BYTES      (4u << 20)
#define CONNECT_TIMEOUT_MS       3000u
#define LINKS_MAX                4096u
#define LISTEN_BACKLOG           512
#define ACCEPT_RETRY_NS          (100 * NS_PER_MS)
/*
 * A peer whose machine is gone while nothing is said: noticed after 5 + 3 * 2 seconds.  One that
 * takes nothing may be slow or paused: that is for the cores to judge, who know what they wait for.
 */
#define KEEPALIVE_IDLE_S     5
#define KEEPALIVE_INTERVAL_S 2
#define KEEPALIVE_COUNT      3

struct net_listener {
    struct net *net;
    struct list node;
    const struct link_events *events;
    void *core;
    struct dl_address address;
    int fd;
    bool closing;
    bool accept_busy, cancel_busy;
    struct io_req accept_req, cancel_req;
    struct env_timer retry_timer;
    struct env_task task;
};

/* A name on its way through the worker.  It outlives its link, if that is closed meanwhile. */
struct resolve {
    struct worker_job job;
    struct net *net;
    struct net_link *link; /* NULL: the link is gone */
    char host[DL_ADDRESS_HOST_BYTES];
    char port[8];
    struct addrinfo *addresses;
    int result; /* of getaddrinfo() */
    int system_errno;
};

static struct net *
net_of(struct env *env)
{
    return (struct net *)env;
}

/* --- what happens, for people --- */

static void
net_event(struct net *net, enum net_event_level level, const char *text)
{
    if (net->options.on_event != NULL)
        net->options.on_event(net->options.event_context, level, text);
}

void
link_event(const struct net_link *link, enum net_event_level level, const char *format, ...)
{
    char text[512];
    int length;
    va_list arguments;

    if (link->net->options.on_event == NULL)
        return;
    length = snprintf(text, sizeof(text), "link %llu %s: ", (unsigned long long)link->link.id,
                      dl_address_format(&link->link.peer).text);
    if (length < 0 || (size_t)length >= sizeof(text))
        length = 0;
    va_start(arguments, format);
    (void)vsnprintf(text + length, sizeof(text) - (size_t)length, format, arguments);
    va_end(arguments);
    net_event(link->net, level, text);
}

/* --- sockets --- */

static void
address_from_socket(const struct sockaddr_storage *socket_address, struct dl_address *ret_address)
{
    memset(ret_address, 0, sizeof(*ret_address));
    if (socket_address->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)socket_address;

        (void)inet_ntop(AF_INET, &v4->sin_addr, ret_address->host, sizeof(ret_address->host));
        ret_address->port = ntohs(v4->sin_port);
    } else if (socket_address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)socket_address;

        (void)inet_ntop(AF_INET6, &v6->sin6_addr, ret_address->host, sizeof(ret_address->host));
        ret_address->port = ntohs(v6->sin6_port);
    }
}

static void
socket_set(int fd, int level, int option, int value)
{
    /* What the kernel refuses here makes a link slower, not wrong. */
    (void)setsockopt(fd, level, option, &value, sizeof(value));
}

static void
socket_setup(const struct net *net, int fd)
{
    socket_set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    socket_set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    socket_set(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    socket_set(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    socket_set(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
    if (net->set_receive_buffer)
        socket_set(fd, SOL_SOCKET, SO_RCVBUF, (int)net->options.socket_buffer_bytes);
    if (net->set_send_buffer)
        socket_set(fd, SOL_SOCKET, SO_SNDBUF, (int)net->options.socket_buffer_bytes);
}

/*
 * Setting a buffer's size switches the kernel's own adjustment off.  That pays only where the limit
 * allows what we want.
 */
static bool
limit_allows(const char *path, uint32_t bytes)
{
    FILE *file = fopen(path, "re");
    unsigned long limit = 0;
    bool ok;

    if (file == NULL)
        return false;
    ok = fscanf(file, "%lu", &limit) == 1;
    (void)fclose(file);
    return ok && limit >= bytes;
}

/* --- the end of a link --- */

static bool
link_has_operations(const struct net_link *link)
{
    return link->poll_busy || link->send_busy || link->connect_busy || link->cancel_busy;
}

static void link_cancel_operations(struct net_link *link);

static void
link_on_cancel(struct io_req *req, int res)
{
    struct net_link *link = list_entry(req, struct net_link, cancel_req);

    (void)res;
    link->cancel_busy = false;
    if (link->cancel_again) {
        link->cancel_again = false;
        link_cancel_operations(link);
    }
    link_check_finished(link);
}

/* All that the kernel has of this descriptor comes back, each with a completion of its own. */
static void
link_cancel_operations(struct net_link *link)
{
    struct io_uring_sqe *sqe;

    if (link->cancel_busy) {
        /* That one was for an attempt to connect; what was started since needs another. */
        link->cancel_again = true;
        return;
    }
    if (!link_has_operations(link))
        return;
    sqe = loop_get_sqe(link->net->loop, &link->cancel_req);
    io_uring_prep_cancel_fd(sqe, link->fd, IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data(sqe, &link->cancel_req);
    link->cancel_busy = true;
}

void
link_begin_down(struct net_link *link, int err)
{
    dl_assert(err < 0);
    if (link->state == LINK_CLOSING)
        return;
    if (link->resolve != NULL) {
        link->resolve->link = NULL;
        link->resolve = NULL;
    }
    loop_timer_stop(link->net->loop, &link->connect_timer);
    if (list_is_linked(&link->dirty_node))
        list_remove(&link->dirty_node);
    if (link->state == LINK_UP)
        (void)shutdown(link->fd, SHUT_RDWR);
    link->state = LINK_CLOSING;
    link->down_err = err;
    link_cancel_operations(link);
    link_check_finished(link);
}

void
link_check_finished(struct net_link *link)
{
    if (link->state == LINK_CLOSING && !link_has_operations(link))
        loop_defer(link->net->loop, &link->task);
}

static void
net_check_stopped(struct net *net)
{
    if (net->stopping)
        loop_defer(net->loop, &net->stop_task);
}

static void
link_destroy(struct net_link *link)
{
    struct net *net = link->net;

    if (link->fd >= 0)
        (void)close(link->fd);
    if (link->addresses != NULL)
        freeaddrinfo(link->addresses);
    if (link->accepted)
        net->accepted_count--;
    link_receive_fini(link);
    list_remove(&link->node);
    net->stats.links--;
    free(link);
    net_check_stopped(net);
}

static void
link_on_task(struct env_task *task)
{
    struct net_link *link = list_entry(task, struct net_link, task);

    if (link->state == LINK_CLOSING) {
        if (link_has_operations(link))
            return;
        link_send_give_back(link, -DL_E_CONNECTION_LOST);
        link->link.up = false;
        link->link.events->on_down(link->link.core, &link->link, link->down_err);
        /* Frames that on_down itself has queued. */
        link_send_give_back(link, -DL_E_CONNECTION_LOST);
        link_destroy(link);
    } else if (link->state == LINK_UP) {
        link_receive_continue(link);
    } else {
        link_send_give_back(link, -DL_E_CONNECTION_LOST);
    }
}

/* --- the beginning of a link --- */

static void link_on_connect(struct io_req *req, int res);
static void link_on_connect_timer(struct env_timer *timer);

static struct net_link *
link_create(struct net *net, const struct link_events *events, void *core)
{
    struct net_link *link = calloc(1, sizeof(*link));

    /* A net without memory for a link can't tell its core: link_connect() never fails. */
    dl_assert(link != NULL);
    link->link = (struct link){
        .id = ++net->next_id,
        .env = &net->env,
        .events = events,
        .core = core,
    };
    link->net = net;
    link->fd = -1;
    link->task.fn = link_on_task;
    link->connect_req.on_cqe = link_on_connect;
    link->cancel_req.on_cqe = link_on_cancel;
    link->connect_timer.fn = link_on_connect_timer;
    link_receive_init(link);
    link_send_init(link);
    list_push_back(&net->links, &link->node);
    net->stats.links++;
    return link;
}

static void
link_set_up(struct net_link *link)
{
    link->state = LINK_UP;
    link->link.up = true;
    loop_defer(link->net->loop, &link->task);
}

/* Try the next of the name's addresses; err is what the last one failed with. */
static void
link_connect_next(struct net_link *link, int err)
{
    struct net *net = link->net;
    struct io_uring_sqe *sqe;

    if (link->fd >= 0) {
        (void)close(link->fd);
        link->fd = -1;
    }
    while (link->address_next != NULL) {
        const struct addrinfo *address = link->address_next;

        link->address_next = address->ai_next;
        if (address->ai_addrlen > sizeof(link->address))
            continue;
        /*
         * Blocking, as io_uring wants it: on a non-blocking socket it would give -EAGAIN instead of
         * waiting.
         */
        link->fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (link->fd < 0) {
            err = -errno;
            continue;
        }
        socket_setup(net, link->fd);
        memcpy(&link->address, address->ai_addr, address->ai_addrlen);
        sqe = loop_get_sqe(net->loop, &link->connect_req);
        io_uring_prep_connect(sqe, link->fd, (struct sockaddr *)&link->address,
                              address->ai_addrlen);
        io_uring_sqe_set_data(sqe, &link->connect_req);
        link->connect_busy = true;
        link->connect_timed_out = false;
        loop_timer_start(net->loop, &link->connect_timer,
                         net->options.connect_timeout_ms * NS_PER_MS);
        return;
    }
    net->stats.connect_failures++;
    link_begin_down(link, err);
}

static void
link_on_connect_timer(struct env_timer *timer)
{
    struct net_link *link = list_entry(timer, struct net_link, connect_timer);

    link->connect_timed_out = true;
    link_cancel_operations(link);
}

static void
link_on_connect(struct io_req *req, int res)
{
    struct net_link *link = list_entry(req, struct net_link, connect_req);

    link->connect_busy = false;
    if (link->state == LINK_CLOSING) {
        link_check_finished(link);
        return;
    }
    loop_timer_stop(link->net->loop, &link->connect_timer);
    if (res < 0) {
        link_connect_next(link, link->connect_timed_out ? -ETIMEDOUT : res);
        return;
    }
    link->net->stats.connected++;
    address_from_socket(&link->address, &link->link.peer);
    freeaddrinfo(link->addresses);
    link->addresses = NULL;
    link_set_up(link);
    link->link.events->on_up(link->link.core, &link->link);
}

static int
resolve_error(int result, int system_errno)
{
    switch (result) {
    case EAI_SYSTEM:
        return system_errno != 0 ? -system_errno : -EIO;
    case EAI_MEMORY:
        return -ENOMEM;
    case EAI_AGAIN:
        return -EAGAIN;
    default:
        return -DL_E_HOST_UNKNOWN;
    }
}

static void
resolve_run(struct worker_job *job)
{
    struct resolve *resolve = list_entry(job, struct resolve, job);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

    errno = 0;
    resolve->result = getaddrinfo(resolve->host, resolve->port, &hints, &resolve->addresses);
    resolve->system_errno = errno;
}

static void
resolve_done(struct worker_job *job)
{
    struct resolve *resolve = list_entry(job, struct resolve, job);
    struct net *net = resolve->net;
    struct net_link *link = resolve->link;

    net->resolves_pending--;
    if (link == NULL) {
        if (resolve->addresses != NULL)
            freeaddrinfo(resolve->addresses);
    } else {
        link->resolve = NULL;
        link->addresses = resolve->addresses;
        link->address_next = resolve->addresses;
        link->state = LINK_CONNECTING;
        if (resolve->result != 0)
            link_event(link, NET_EVENT_DEBUG, "name not found: %s", gai_strerror(resolve->result));
        link_connect_next(link, resolve_error(resolve->result, resolve->system_errno));
    }
    free(resolve);
    net_check_stopped(net);
}

static struct worker *
net_worker(struct net *net)
{
    if (net->worker == NULL && worker_create(&net->worker_own, net->loop, 2, NULL) == 0)
        net->worker = net->worker_own;
    return net->worker;
}

static void
link_resolve(struct net_link *link)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct resolve *resolve;
    char port[8];

    (void)snprintf(port, sizeof(port), "%u", (unsigned)link->link.peer.port);
    /* A numeric address needs no look-up, and doesn't block. */
    if (getaddrinfo(link->link.peer.host, port, &hints, &link->addresses) == 0) {
        link->state = LINK_CONNECTING;
        link->address_next = link->addresses;
        link_connect_next(link, -EADDRNOTAVAIL);
        return;
    }
    resolve = calloc(1, sizeof(*resolve));
    if (resolve == NULL || net_worker(link->net) == NULL) {
        free(resolve);
        link_begin_down(link, -DL_E_NO_MEMORY);
        return;
    }
    resolve->job.run = resolve_run;
    resolve->job.on_done = resolve_done;
    resolve->net = link->net;
    resolve->link = link;
    memcpy(resolve->host, link->link.peer.host, sizeof(resolve->host));
    memcpy(resolve->port, port, sizeof(resolve->port));
    link->resolve = resolve;
    link->net->resolves_pending++;
    worker_submit(link->net->worker, &resolve->job);
}

/* --- listening --- */

static void
listener_on_task(struct env_task *task)
{
    struct net_listener *listener = list_entry(task, struct net_listener, task);
    struct net *net = listener->net;

    if (listener->accept_busy || listener->cancel_busy)
        return;
    (void)close(listener->fd);
    list_remove(&listener->node);
    free(listener);
    net_check_stopped(net);
}

static void
listener_check_finished(struct net_listener *listener)
{
    if (listener->closing)
        loop_defer(listener->net->loop, &listener->task);
}

static void
listener_on_cancel(struct io_req *req, int res)
{
    struct net_listener *listener = list_entry(req, struct net_listener, cancel_req);

    (void)res;
    listener->cancel_busy = false;
    listener_check_finished(listener);
}

static void
listener_accept_start(struct net_listener *listener)
{
    struct io_uring_sqe *sqe = loop_get_sqe(listener->net->loop, &listener->accept_req);

    io_uring_prep_multishot_accept(sqe, listener->fd, NULL, NULL, SOCK_CLOEXEC);
    io_uring_sqe_set_data(sqe, &listener->accept_req);
    listener->accept_busy = true;
}

static void
listener_on_retry(struct env_timer *timer)
{
    listener_accept_start(list_entry(timer, struct net_listener, retry_timer));
}

static void
listener_accepted(struct net_listener *listener, int fd)
{
    struct net *net = listener->net;
    struct sockaddr_storage address = {0};
    socklen_t address_length = sizeof(address);
    struct net_link *link;

    if (listener->closing || net->accepted_count >= net->options.links_max) {
        (void)close(fd);
        if (!listener->closing) {
            net->stats.refused++;
            net_event(net, NET_EVENT_WARNING, "a connection was refused: too many of them");
        }
        return;
    }
    (void)getpeername(fd, (struct sockaddr *)&address, &address_length);
    socket_setup(net, fd);
    link = link_create(net, listener->events, listener->core);
    link->fd = fd;
    link->accepted = true;
    net->accepted_count++;
    net->stats.accepted++;
    address_from_socket(&address, &link->link.peer);
    link_set_up(link);
    listener->events->on_accept(listener->core, &link->link);
}

static void
listener_on_accept(struct io_req *req, int res)
{
    struct net_listener *listener = list_entry(req, struct net_listener, accept_req);
    struct net *net = listener->net;

    if ((loop_cqe_flags(net->loop) & IORING_CQE_F_MORE) == 0)
        listener->accept_busy = false;
    if (res >= 0)
        listener_accepted(listener, res);
    if (listener->closing) {
        listener_check_finished(listener);
        return;
    }
    if (listener->accept_busy)
        return;
    if (res < 0) {
        char text[128];

        (void)snprintf(text, sizeof(text), "can't accept a connection: %s", strerror(-res));
        net_event(net, NET_EVENT_WARNING, text);
        loop_timer_start(net->loop, &listener->retry_timer, ACCEPT_RETRY_NS);
        return;
    }
    listener_accept_start(listener);
}

/* The socket: bound and listening, or a negative errno with its text. */
static int
listener_open(const struct dl_address *address, struct dl_error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char port[8];
    int fd;
    int result;

    (void)snprintf(port, sizeof(port), "%u", (unsigned)address->port);
    result = getaddrinfo(address->host, port, &hints, &found);
    if (result != 0) {
        dl_error_set(err, -DL_E_CONFIG_INVALID, "can't listen on %s: %s",
                     dl_address_format(address).text, gai_strerror(result));
        return -DL_E_CONFIG_INVALID;
    }
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        socket_set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
        if (found->ai_family == AF_INET6)
            socket_set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    }
    if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) < 0 ||
        listen(fd, LISTEN_BACKLOG) < 0) {
        result = -errno;
        dl_error_set(err, result, "can't listen on %s: %s", dl_address_format(address).text,
                     strerror(-result));
        if (result == -EADDRINUSE)
            dl_error_hint(err, "another program listens there: stop it, or choose another port");
        else if (result == -EADDRNOTAVAIL)
            dl_error_hint(err, "this machine doesn't have that address: see ip address");
        else if (result == -EACCES)
            dl_error_hint(err, "ports below 1024 need CAP_NET_BIND_SERVICE");
        if (fd >= 0)
            (void)close(fd);
        fd = result;
    }
    freeaddrinfo(found);
    return fd;
}

int
net_listen(struct net *net, const struct dl_address *address, const struct link_events *events,
           void *core, struct net_listener **ret_listener, struct dl_error *err)
{
    struct net_listener *listener;
    struct sockaddr_storage bound = {0};
    socklen_t bound_length = sizeof(bound);
    int fd = listener_open(address, err);

    if (fd < 0)
        return fd;
    listener = calloc(1, sizeof(*listener));
    if (listener == NULL) {
        (void)close(fd);
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory to listen");
    }
    listener->net = net;
    listener->events = events;
    listener->core = core;
    listener->fd = fd;
    listener->accept_req.on_cqe = listener_on_accept;
    listener->cancel_req.on_cqe = listener_on_cancel;
    listener->retry_timer.fn = listener_on_retry;
    listener->task.fn = listener_on_task;
    (void)getsockname(fd, (struct sockaddr *)&bound, &bound_length);
    address_from_socket(&bound, &listener->address);
    list_push_back(&net->listeners, &listener->node);
    listener_accept_start(listener);
    if (ret_listener != NULL)
        *ret_listener = listener;
    return 0;
}

const struct dl_address *
net_listener_address(const struct net_listener *listener)
{
    return &listener->address;
}

void
net_listener_close(struct net_listener *listener)
{
    struct io_uring_sqe *sqe;

    if (listener->closing)
        return;
    listener->closing = true;
    loop_timer_stop(listener->net->loop, &listener->retry_timer);
    if (listener->accept_busy) {
        sqe = loop_get_sqe(listener->net->loop, &listener->cancel_req);
        io_uring_prep_cancel(sqe, &listener->accept_req, 0);
        io_uring_sqe_set_data(sqe, &listener->cancel_req);
        listener->cancel_busy = true;
    }
    listener_check_finished(listener);
}

/* --- the env --- */

static uint64_t
net_env_now_ns(struct env *env)
{
    return loop_now_ns(net_of(env)->loop);
}

static uint64_t
net_env_wall_ms(struct env *env)
{
    (void)env;
    return clock_wall_ms();
}

/*
 * splitmix64 from a seed of the kernel's: for jitter and ids that must not repeat, not for secrets.
 */
static uint64_t
net_env_random(struct env *env)
{
    uint64_t z = (net_of(env)->random_state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void
net_env_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_ns)
{
    loop_timer_start(net_of(env)->loop, timer, delay_ns);
}

static void
net_env_timer_stop(struct env *env, struct env_timer *timer)
{
    loop_timer_stop(net_of(env)->loop, timer);
}

static void
net_env_defer(struct env *env, struct env_task *task)
{
    loop_defer(net_of(env)->loop, task);
}

static struct link *
net_env_link_connect(struct env *env, const struct dl_address *address,
                     const struct link_events *events, void *core, void *user)
{
    struct net_link *link = link_create(net_of(env), events, core);

    link->link.user = user;
    link->link.peer = *address;
    /* A core that connects again from on_down would never let a net stop. */
    if (link->net->stopping)
        link_begin_down(link, -DL_E_CANCELLED);
    else
        link_resolve(link);
    return &link->link;
}

static void
net_env_link_send(struct env *env, struct link *link, struct frame_out *frame)
{
    (void)env;
    link_send_queue(net_link_of(link), frame);
}

static void
net_env_link_close(struct env *env, struct link *link)
{
    struct net_link *net_link = net_link_of(link);

    (void)env;
    if (net_link->state == LINK_UP)
        link_send_last(net_link);
    link_begin_down(net_link, -DL_E_CANCELLED);
}

static void
net_env_link_pause(struct env *env, struct link *link, bool paused)
{
    struct net_link *net_link = net_link_of(link);

    if (net_link->paused == paused)
        return;
    net_link->paused = paused;
    if (!paused && net_link->state == LINK_UP)
        loop_defer(net_of(env)->loop, &net_link->task);
}

static const struct env_ops net_env_ops = {
    .now_ns = net_env_now_ns,
    .wall_ms = net_env_wall_ms,
    .random = net_env_random,
    .timer_start = net_env_timer_start,
    .timer_stop = net_env_timer_stop,
    .defer = net_env_defer,
    .link_connect = net_env_link_connect,
    .link_send = net_env_link_send,
    .link_close = net_env_link_close,
    .link_pause = net_env_link_pause,
};

struct env *
net_env(struct net *net)
{
    return &net->env;
}

/* --- life --- */

static void
net_on_stop_task(struct env_task *task)
{
    struct net *net = list_entry(task, struct net, stop_task);

    if (!list_is_empty(&net->links) || !list_is_empty(&net->listeners) ||
        net->resolves_pending > 0 || net->on_stopped == NULL)
        return;
    void (*on_stopped)(void *context) = net->on_stopped;

    net->on_stopped = NULL;
    net->stopping = false;
    on_stopped(net->stopped_context);
}

static void
net_set_options(struct net *net, const struct net_options *options)
{
    if (options != NULL)
        net->options = *options;
    if (net->options.receive_buffer_bytes == 0)
        net->options.receive_buffer_bytes = RECEIVE_BUFFER_BYTES;
    if (net->options.receive_buffer_bytes < RECEIVE_BUFFER_BYTES_MIN)
        net->options.receive_buffer_bytes = RECEIVE_BUFFER_BYTES_MIN;
    if (net->options.socket_buffer_bytes == 0)
        net->options.socket_buffer_bytes = SOCKET_BUFFER_BYTES;
    if (net->options.connect_timeout_ms == 0)
        net->options.connect_timeout_ms = CONNECT_TIMEOUT_MS;
    if (net->options.links_max == 0)
        net->options.links_max = LINKS_MAX;
    net->set_receive_buffer = limit_allows("/proc/sys/net/core/rmem_max",
                                           net->options.socket_buffer_bytes);
    net->set_send_buffer = limit_allows("/proc/sys/net/core/wmem_max",
                                        net->options.socket_buffer_bytes);
}

int
net_create(struct net **ret_net, struct loop *loop, struct worker *worker,
           const struct net_options *options, struct dl_error *err)
{
    struct net *net = calloc(1, sizeof(*net));

    if (net == NULL)
        return dl_error_set(err, -DL_E_NO_MEMORY, "no memory for connections");
    net->env.ops = &net_env_ops;
    net->loop = loop;
    net->worker = worker;
    net->stop_task.fn = net_on_stop_task;
    list_init(&net->links);
    list_init(&net->listeners);
    list_init(&net->dirty);
    net_set_options(net, options);
    if (getrandom(&net->random_state, sizeof(net->random_state), GRND_NONBLOCK) !=
        (ssize_t)sizeof(net->random_state))
        net->random_state = clock_monotonic_ns() ^ (uint64_t)getpid() << 40;
    loop_add_flush(loop, net_flush, net);
    *ret_net = net;
    return 0;
}

void
net_destroy(struct net *net)
{
    if (net == NULL)
        return;
    dl_assert(list_is_empty(&net->links));
    dl_assert(list_is_empty(&net->listeners));
    dl_assert(net->resolves_pending == 0);
    dl_assert(!net->stop_task.queued);
    loop_remove_hook(net->loop, net_flush, net);
    worker_destroy(net->worker_own);
    net_free_spare_buffers(net);
    free(net);
}

void
net_stop(struct net *net, void (*on_stopped)(void *context), void *context)
{
    struct net_listener *listener;
    struct net_link *link;

    net->stopping = true;
    net->on_stopped = on_stopped;
    net->stopped_context = context;
    list_for_each_entry (listener, &net->listeners, node)
        net_listener_close(listener);
    list_for_each_entry (link, &net->links, node)
        net_env_link_close(&net->env, &link->link);
    net_check_stopped(net);
}

void
net_get_stats(const struct net *net, struct net_stats *ret_stats)
{
    *ret_stats = net->stats;
}
