/* A load on libvirt by its own library, which speaks its binary protocol: threads with
 * a connection each that ask as soon as they were answered.
 *
 * usage: libvirt SOCKET define COUNT            defines vm00000 and so on
 *        libvirt SOCKET info|list|create CONNECTIONS SECONDS
 *
 * Prints: answers a second, and the median and the 99th percentile in microseconds. */
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DEFINED = 100, MOST = 4000000 };

static char uri[512];
static double seconds;
static const char *what;
static pthread_barrier_t begin;

struct worker {
    pthread_t thread;
    int number;
    long count;
    double took;
    unsigned *micros;
};

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void die(const char *doing)
{
    fprintf(stderr, "%s: %s\n", doing, virGetLastErrorMessage());
    exit(1);
}

static void define(virConnectPtr connection, const char *name)
{
    char xml[1024];
    snprintf(xml, sizeof xml,
             "<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>"
             "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
             "<emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>",
             name);
    virDomainPtr domain = virDomainDefineXML(connection, xml);
    if (!domain)
        die("define");
    virDomainFree(domain);
}

static void ask(virConnectPtr connection, virDomainPtr *domains, struct worker *me)
{
    if (!strcmp(what, "info")) {
        virDomainInfo info;
        if (virDomainGetInfo(domains[(me->number * 13 + me->count) % DEFINED], &info) < 0)
            die("info");
    } else if (!strcmp(what, "list")) {
        virDomainStatsRecordPtr *all = NULL;
        if (virConnectGetAllDomainStats(connection, VIR_DOMAIN_STATS_STATE, &all, 0) < DEFINED)
            die("list");
        virDomainStatsRecordListFree(all);
    } else {
        char name[64];
        /* Another turn makes others. */
        snprintf(name, sizeof name, "w%d-%d-%ld", (int)getpid(), me->number, me->count);
        define(connection, name);
    }
}

static void *work(void *argument)
{
    struct worker *me = argument;
    virConnectPtr connection = virConnectOpen(uri);
    if (!connection)
        die("connect");
    virDomainPtr domains[DEFINED];
    for (int n = 0; n < DEFINED; n++) {
        char name[32];
        snprintf(name, sizeof name, "vm%05d", n);
        domains[n] = virDomainLookupByName(connection, name);
        if (!domains[n])
            die("look up");
    }
    pthread_barrier_wait(&begin);
    double began = now(), last = began;
    while (last - began < seconds && me->count < MOST) {
        ask(connection, domains, me);
        double at = now();
        me->micros[me->count++] = (at - last) * 1e6;
        last = at;
    }
    me->took = last - began;
    for (int n = 0; n < DEFINED; n++)
        virDomainFree(domains[n]);
    virConnectClose(connection);
    return NULL;
}

static int smaller(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    snprintf(uri, sizeof uri, "qemu+unix:///system?socket=%s", argv[1]);
    what = argv[2];
    int connections = atoi(argv[3]);
    if (virInitialize() < 0)
        die("initialize");
    if (!strcmp(what, "define")) {
        virConnectPtr connection = virConnectOpen(uri);
        if (!connection)
            die("connect");
        for (int n = 0; n < connections; n++) {
            char name[32];
            snprintf(name, sizeof name, "vm%05d", n);
            define(connection, name);
        }
        virConnectClose(connection);
        return 0;
    }
    seconds = argc > 4 ? atof(argv[4]) : 1;
    pthread_barrier_init(&begin, NULL, connections);
    struct worker *workers = calloc(connections, sizeof *workers);
    for (int n = 0; n < connections; n++) {
        workers[n].number = n;
        workers[n].micros = malloc(sizeof(unsigned) * MOST);
        pthread_create(&workers[n].thread, NULL, work, &workers[n]);
    }
    long count = 0;
    double took = 0;
    for (int n = 0; n < connections; n++) {
        pthread_join(workers[n].thread, NULL);
        count += workers[n].count;
        if (workers[n].took > took)
            took = workers[n].took;
    }
    unsigned *all = malloc(sizeof *all * (count + 1));
    long filled = 0;
    for (int n = 0; n < connections; n++) {
        memcpy(all + filled, workers[n].micros, sizeof *all * workers[n].count);
        filled += workers[n].count;
    }
    qsort(all, count, sizeof *all, smaller);
    printf("%.0f %u %u\n", count / took, all[count / 2], all[count * 99 / 100]);
    return 0;
}
