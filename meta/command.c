/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests to chunkservers that must be done some day: FENCE, CHUNK_DELETE.  A command stays in its
 * server's queue until it is answered: it is sent when the server is registered, again on each new
 * connection, and again COMMAND_RETRY_NS after an error.  All of them are idempotent.
 */
#include <inttypes.h>

#include "common/assert.h"
#include "meta/internal.h"

#define COMMAND_RETRY_NS  NS_PER_S
#define COMMAND_LOG_EVERY 60u /* failures */

void
meta_command_start(struct meta_command *command, struct meta_server *server, bool urgent)
{
    dl_assert(command->server == NULL);
    command->server = server;
    command->in_flight = false;
    command->retry_ns = 0;
    if (urgent)
        list_push_front(&server->commands, &command->node);
    else
        list_push_back(&server->commands, &command->node);
    meta_server_pump(server);
}

static void
command_leave(struct meta_command *command)
{
    if (command->in_flight) {
        dl_assert(command->server->commands_in_flight > 0);
        command->server->commands_in_flight--;
        command->in_flight = false;
    }
    list_remove(&command->node);
    command->server = NULL;
}

void
meta_command_cancel(struct meta_command *command)
{
    if (command->server == NULL)
        return;
    meta_peer_request_cancel(&command->request);
    command_leave(command);
}

static void
command_retry(struct meta_command *command, const char *why)
{
    struct meta_server *server = command->server;

    if (command->failures++ % COMMAND_LOG_EVERY == 0)
        meta_log(server->core, META_LOG_WARNING, "command",
                 "server %s: %s for volume %" PRIu64 " failed and is sent again: %s",
                 meta_server_text(server), command->name, command->volume_id, why);
    command->in_flight = false;
    server->commands_in_flight--;
    command->retry_ns = env_now_ns(server->core->env) + COMMAND_RETRY_NS;
}

static void
command_on_reply(struct meta_peer_request *request, const struct frame *frame, int err)
{
    struct meta_command *command = list_entry(request, struct meta_command, request);
    struct meta_server *server = command->server;

    dl_assert(command->in_flight);
    if (frame == NULL) {
        /* The connection is gone: sent at once on the next one. */
        (void)err;
        command->in_flight = false;
        server->commands_in_flight--;
        return;
    }
    if (frame->status != 0 && !(command->optional && frame->status == -DL_E_OPCODE_UNKNOWN)) {
        command_retry(command, dl_err_str(frame->status));
        return;
    }
    command_leave(command);
    if (!command->on_reply(command, frame)) { /* true: may be freed */
        command->server = server;
        list_push_back(&server->commands, &command->node);
        command->in_flight = true;
        server->commands_in_flight++;
        command_retry(command, "the answer makes no sense");
    }
    meta_server_pump(server);
}

void
meta_command_send(struct meta_command *command, uint16_t opcode, const ProtobufCMessage *message)
{
    struct meta_server *server = command->server;

    command->in_flight = true;
    server->commands_in_flight++;
    meta_peer_request_send(server->session, &command->request, opcode, message, command_on_reply);
}

void
meta_server_pump(struct meta_server *server)
{
    struct meta_command *command, *following;
    uint64_t now_ns = env_now_ns(server->core->env);

    if (server->session == NULL || server->session->closing)
        return;
    list_for_each_entry_safe (command, following, &server->commands, node) {
        if (server->commands_in_flight >= META_SERVER_COMMANDS)
            return;
        if (!command->in_flight && command->retry_ns <= now_ns)
            command->send(command);
    }
}
