/* What starting a program takes: the time from fork to exit, and its peak of resident memory.
 *
 *   launch PROGRAM ARGUMENT...
 *
 * The program's output is dropped. In C because a child's peak starts with what its parent had at the fork, which is
 * next to nothing here. Prints one line of JSON; exits with 1 if the program does not succeed.
 */
#include "common.h"

#include <sys/resource.h>
#include <sys/wait.h>

int main(int count, char **arguments)
{
    struct rusage usage;
    int status;

    if (count < 2)
        return fprintf(stderr, "usage: launch PROGRAM ARGUMENT...\n"), 2;
    double started = seconds();
    pid_t child = fork();

    if (child < 0)
        fail("fork");
    if (child == 0) {
        int nothing = open("/dev/null", O_RDWR);

        dup2(nothing, STDIN_FILENO);
        dup2(nothing, STDOUT_FILENO);
        execvp(arguments[1], arguments + 1);
        fail(arguments[1]);
    }
    if (wait4(child, &status, 0, &usage) < 0)
        fail("wait4");
    double ended = seconds();

    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "%s ended with status %#x\n", arguments[1], status);
        return 1;
    }
    printf("{\"seconds\": %.9f, \"peak_kib\": %ld}\n", ended - started, usage.ru_maxrss);
    return 0;
}
