/*
 * Gives a pty the modem lines of a real serial port, for a program that is not changed.
 *
 * Loaded by LD_PRELOAD, it answers TIOCMGET, TIOCMSET, TIOCMBIS and TIOCMBIC on the pty that
 * AEGIS_MODEM_TTY names (a link is followed anew each time) and sends each change as one byte,
 * bit 0 DTR and bit 1 RTS, to the datagram socket at AEGIS_MODEM_SOCKET.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int lines = TIOCM_CTS | TIOCM_DSR | TIOCM_CAR;

static int is_modem(int fd)
{
    const char *tty = getenv("AEGIS_MODEM_TTY");
    char link[64], open_file[PATH_MAX], wanted[PATH_MAX];
    ssize_t length;

    if (!tty || !realpath(tty, wanted))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, open_file, sizeof open_file - 1);
    if (length < 0)
        return 0;
    open_file[length] = 0;
    return strcmp(open_file, wanted) == 0;
}

static void tell(void)
{
    const char *path = getenv("AEGIS_MODEM_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    unsigned char bits = (lines & TIOCM_DTR ? 1 : 0) | (lines & TIOCM_RTS ? 2 : 0);
    int fd;

    if (!path || strlen(path) >= sizeof to.sun_path)
        return;
    strcpy(to.sun_path, path);
    fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (fd < 0)
        return;
    if (sendto(fd, &bits, 1, 0, (struct sockaddr *)&to, sizeof to) != 1)
        perror("modem_shim: the board does not take its lines");
    close(fd);
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, ...);
    va_list list;
    void *argument;

    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if (request == TIOCMGET || request == TIOCMSET || request == TIOCMBIS ||
        request == TIOCMBIC) {
        if (is_modem(fd)) {
            int bits = *(int *)argument & (TIOCM_DTR | TIOCM_RTS);

            if (request == TIOCMGET) {
                *(int *)argument = lines;
                return 0;
            }
            if (request == TIOCMSET)
                lines = (lines & ~(TIOCM_DTR | TIOCM_RTS)) | bits;
            else if (request == TIOCMBIS)
                lines |= bits;
            else
                lines &= ~bits;
            tell();
            return 0;
        }
    }
    if (!real)
        real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    return real(fd, request, argument);
}
