/* A wall clock that is off by as many seconds as a file says; every other clock is left alone.

   Files are dated by it too, as a kernel whose clock was set would date them: when a file is made or
   written to by one of the calls below, its times are set to what this clock shows. SQLite's own writes
   (pwrite) are left alone, since nobody asks when its files were written.

   Preloaded into a node of the campaign (tests/campaign/clock.py). libfaketime, which does more,
   also stands in the way of sleeping: under it Python's sleep fails with EINVAL after a step. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long offset_s(void)
{
    char text[32] = {0};
    const char *path = getenv("STEPPED_CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    long seconds = 0;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0)
            seconds = strtol(text, NULL, 10);
        close(file);
    }
    return seconds;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    static int (*next)(clockid_t, struct timespec *);
    if (!next)
        next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = next(id, now);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset_s();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    if (result == 0) {
        now->tv_sec = exact.tv_sec;
        now->tv_usec = exact.tv_nsec / 1000;
    }
    return result;
}

time_t time(time_t *kept)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (kept)
        *kept = exact.tv_sec;
    return exact.tv_sec;
}

/* Date a regular file that was just made or written to. */
static void date(int file)
{
    int kept = errno;
    struct stat about;
    if (file >= 0 && offset_s() != 0 && fstat(file, &about) == 0 && S_ISREG(about.st_mode)) {
        struct timespec times[2];
        clock_gettime(CLOCK_REALTIME, &times[0]);
        times[1] = times[0];
        futimens(file, times);
    }
    errno = kept;
}

ssize_t write(int file, const void *bytes, size_t count)
{
    static ssize_t (*next)(int, const void *, size_t);
    if (!next)
        next = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    ssize_t result = next(file, bytes, count);
    if (result > 0)
        date(file);
    return result;
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    static ssize_t (*next)(int, const struct iovec *, int);
    if (!next)
        next = (ssize_t (*)(int, const struct iovec *, int))dlsym(RTLD_NEXT, "writev");
    ssize_t result = next(file, parts, count);
    if (result > 0)
        date(file);
    return result;
}

/* Opening: a new and empty file has a time as well, such as the probe of the spool's own clock. */
#define OPENING(NAME)                                                                       \
    int NAME(const char *path, int flags, ...)                                              \
    {                                                                                       \
        static int (*next)(const char *, int, ...);                                         \
        mode_t mode = 0;                                                                    \
        if (!next)                                                                          \
            next = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #NAME);                \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                              \
            va_list rest;                                                                   \
            va_start(rest, flags);                                                          \
            mode = va_arg(rest, mode_t);                                                    \
            va_end(rest);                                                                   \
        }                                                                                   \
        int file = next(path, flags, mode);                                                 \
        if (flags & O_CREAT)                                                                \
            date(file);                                                                     \
        return file;                                                                        \
    }
OPENING(open)
OPENING(open64)
