/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "common/assert.h"

#define COLUMNS_MAX 16

struct cli_table {
    size_t column_count;
    enum cli_align aligns[COLUMNS_MAX];
    size_t widths[COLUMNS_MAX];
    char **cells; /* the titles are the first row */
    size_t cell_count, cells_allocated;
};

struct cli_table *
cli_table_create(void)
{
    struct cli_table *table = calloc(1, sizeof(*table));

    dl_assert(table != NULL);
    return table;
}

void
cli_table_destroy(struct cli_table *table)
{
    if (table == NULL)
        return;
    for (size_t i = 0; i < table->cell_count; i++)
        free(table->cells[i]);
    free(table->cells);
    free(table);
}

static void
table_add(struct cli_table *table, char *text)
{
    if (table->cell_count == table->cells_allocated) {
        table->cells_allocated = table->cells_allocated * 2 + 64;
        table->cells = realloc(table->cells, table->cells_allocated * sizeof(*table->cells));
    }
    dl_assert(text != NULL);
    dl_assert(table->cells != NULL);
    table->cells[table->cell_count++] = text;
}

void
cli_table_column(struct cli_table *table, const char *title, enum cli_align align)
{
    dl_assert(table->column_count < COLUMNS_MAX);
    dl_assert(table->cell_count == table->column_count);
    table->aligns[table->column_count] = align;
    table->widths[table->column_count] = strlen(title);
    table->column_count++;
    table_add(table, strdup(title));
}

void
cli_table_cell(struct cli_table *table, const char *format, ...)
{
    size_t column = table->cell_count % table->column_count;
    char *text = NULL;
    va_list arguments;
    int bytes;

    va_start(arguments, format);
    bytes = vasprintf(&text, format, arguments);
    va_end(arguments);
    dl_assert(bytes >= 0);
    if ((size_t)bytes > table->widths[column])
        table->widths[column] = (size_t)bytes;
    table_add(table, text);
}

void
cli_table_print(const struct cli_table *table, FILE *out)
{
    dl_assert(table->cell_count % table->column_count == 0);
    for (size_t i = 0; i < table->cell_count; i++) {
        size_t column = i % table->column_count;
        bool last = column == table->column_count - 1;
        int width = (int)table->widths[column];

        if (table->aligns[column] == CLI_RIGHT)
            fprintf(out, "%*s", width, table->cells[i]);
        else
            fprintf(out, "%-*s", last ? 0 : width, table->cells[i]);
        fputs(last ? "\n" : "  ", out);
    }
}
