/* What splitting and merging RAM under running vCPUs costs in C, by the same protocol as the library's.
 *
 *   split VCPUS
 *
 * Each vCPU reads and writes memory in the part that changes. An update holds every vCPU out of its ioctls, deletes
 * the slots of the part and adds it back, as two slots and as one in turn: 3 calls. Who came out for one hold gets up
 * to 1 ms to enter before the next.
 *
 * It takes turns (benchmarks/turns.py), with the vCPUs held in between. "gapN COUNT" makes COUNT updates N µs apart and
 * answers with the seconds of each; "counts 1" answers with the kicks and the faults so far. Faults are exits at memory
 * that was always there.
 */
#define _GNU_SOURCE
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>

enum { PART = 0x40000, PART_SIZE = 0x20000, HALF = PART_SIZE / 2, CODE = 0x1000, MAX_VCPUS = 64 };
enum { FAIRNESS_NS = 1000000, WARM_UP = 200, PATIENCE = 10000 };

/* mov ax, 0x4000; mov ds, ax; again: mov al, [0]; inc byte [0xffff]; jmp again */
static const unsigned char guest[] = {0xB8, 0x00, 0x40, 0x8E, 0xD8, 0xA0, 0x00, 0x00,
                                      0xFE, 0x06, 0xFF, 0xFF, 0xEB, 0xF7};

struct vcpu {
    int fd;
    struct kvm_run *run;
    pid_t thread;
    atomic_bool busy;
    /* Whether it is one of those `waiting` counts; its own thread's. */
    bool counted;
    atomic_ulong faults;
};

static struct vcpu vcpus[MAX_VCPUS];
static int vcpu_count;
static atomic_bool inhibited, done;
static unsigned long kicks;
/* One lock for what is rare: waiting outside, and the three events. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t left, opened, passed;
static bool someone_left;
static int waiting;

static void leave(struct vcpu *vcpu)
{
    atomic_store(&vcpu->busy, false);
    if (!atomic_load(&inhibited))
        return;
    pthread_mutex_lock(&lock);
    /* Counted from here on and not only once it waits. In the library the GIL sees to that: the inhibitor does not get
     * it before this thread waits. Without it the next hold could begin first, and its cost be that of holding nobody.
     */
    if (!vcpu->counted) {
        vcpu->counted = true;
        waiting++;
    }
    someone_left = true;
    pthread_cond_signal(&left);
    pthread_mutex_unlock(&lock);
}

static void enter(struct vcpu *vcpu)
{
    atomic_store(&vcpu->busy, true);
    if (!atomic_load(&inhibited) && !vcpu->counted)
        return;
    while (atomic_load(&inhibited)) {
        leave(vcpu);
        pthread_mutex_lock(&lock);
        while (atomic_load(&inhibited))
            pthread_cond_wait(&opened, &lock);
        atomic_store(&vcpu->busy, true);
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_lock(&lock);
    if (vcpu->counted) {
        vcpu->counted = false;
        if (--waiting == 0)
            pthread_cond_signal(&passed);
    }
    pthread_mutex_unlock(&lock);
}

static void *run_vcpu(void *argument)
{
    struct vcpu *vcpu = argument;

    vcpu->thread = syscall(SYS_gettid);
    for (;;) {
        enter(vcpu);
        /* Looked at inside: whoever sets it inhibits next, and kicks those that did not see it. */
        if (atomic_load(&done)) {
            leave(vcpu);
            return NULL;
        }
        int result = ioctl(vcpu->fd, KVM_RUN, NULL);
        int error = errno;
        leave(vcpu);
        if (result < 0) {
            if (error != EINTR)
                fail("KVM_RUN");
            vcpu->run->immediate_exit = 0;
        } else {
            atomic_fetch_add(&vcpu->faults, 1);
        }
    }
}

static void let_pass(void)
{
    struct timespec until;

    pthread_mutex_lock(&lock);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += FAIRNESS_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (waiting && pthread_cond_timedwait(&passed, &lock, &until) == 0)
        ;
    pthread_mutex_unlock(&lock);
}

static void inhibit(void)
{
    bool kicked[MAX_VCPUS] = {false};

    let_pass();
    atomic_store(&inhibited, true);
    for (;;) {
        bool quiet = true;

        pthread_mutex_lock(&lock);
        someone_left = false;
        pthread_mutex_unlock(&lock);
        for (int i = 0; i < vcpu_count; i++) {
            if (!atomic_load(&vcpus[i].busy))
                continue;
            quiet = false;
            if (!kicked[i]) {
                kicked[i] = true;
                kicks++;
                vcpus[i].run->immediate_exit = 1;
                syscall(SYS_tgkill, getpid(), vcpus[i].thread, SIGUSR1);
            }
        }
        if (quiet)
            return;
        pthread_mutex_lock(&lock);
        while (!someone_left)
            pthread_cond_wait(&left, &lock);
        pthread_mutex_unlock(&lock);
    }
}

static void resume(void)
{
    pthread_mutex_lock(&lock);
    atomic_store(&inhibited, false);
    pthread_cond_broadcast(&opened);
    pthread_mutex_unlock(&lock);
}

static void nothing(int number)
{
    (void)number;
}

static void create_vcpu(int vm, int kvm, int index)
{
    struct vcpu *vcpu = &vcpus[index];
    int size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_regs regs = {.rip = CODE, .rsp = CODE, .rflags = 2};
    struct kvm_sregs sregs;

    vcpu->fd = call(vm, KVM_CREATE_VCPU, (void *)(intptr_t)index, "KVM_CREATE_VCPU");
    vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (vcpu->run == MAP_FAILED)
        fail("mmap of the vCPU");
    call(vcpu->fd, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    call(vcpu->fd, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    call(vcpu->fd, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

/* Bind the calling thread to the first CPU that it may use, as split_jobs.py does. */
static void pin(void)
{
    cpu_set_t may, one;
    int cpu = 0;

    if (sched_getaffinity(0, sizeof may, &may) < 0)
        fail("sched_getaffinity");
    while (!CPU_ISSET(cpu, &may))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) < 0)
        fail("sched_setaffinity");
}

static double update(int vm, char *part)
{
    static bool split;
    double started = seconds();

    inhibit();
    set_slot(vm, 1, PART, 0, part);
    if (split) {
        set_slot(vm, 2, PART + HALF, 0, part + HALF);
        set_slot(vm, 1, PART, PART_SIZE, part);
    } else {
        set_slot(vm, 1, PART, HALF, part);
        set_slot(vm, 2, PART + HALF, HALF, part + HALF);
    }
    resume();
    split = !split;
    return seconds() - started;
}

static void take_turns(int vm, char *part)
{
    char line[256];
    long gap, count;

    inhibit();
    kicks = 0;
    printf("{}\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("{\"costs\": [");
        if (sscanf(line, "gap%ld %ld", &gap, &count) == 2) {
            resume();
            for (long i = 0; i < count; i++) {
                printf("%s%.9f", i ? ", " : "", update(vm, part));
                if (gap)
                    usleep(gap);
            }
            inhibit();
        } else {
            unsigned long faults = 0;

            for (int i = 0; i < vcpu_count; i++)
                faults += atomic_load(&vcpus[i].faults);
            printf("%lu, %lu", kicks, faults);
            count = 1;
        }
        printf("], \"done\": %ld, \"peak_kib\": %ld}\n", count, peak_kib());
        fflush(stdout);
    }
    resume();
}

int main(int count, char **arguments)
{
    vcpu_count = count > 1 ? atoi(arguments[1]) : 0;
    if (vcpu_count < 1 || vcpu_count > MAX_VCPUS)
        return fprintf(stderr, "usage: split VCPUS, 1 to %d\n", MAX_VCPUS), 2;
    int kvm, vm = create_vm(&kvm);
    char *low = map_ram(PART), *part = map_ram(PART_SIZE);
    pthread_t threads[MAX_VCPUS];
    struct sigaction action = {.sa_handler = nothing};
    pthread_condattr_t monotonic;

    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&left, &monotonic);
    pthread_cond_init(&opened, &monotonic);
    pthread_cond_init(&passed, &monotonic);
    sigaction(SIGUSR1, &action, NULL);
    memcpy(low + CODE, guest, sizeof guest);
    call(vm, KVM_SET_TSS_ADDR, (void *)0xFEFFD000, "KVM_SET_TSS_ADDR");
    set_slot(vm, 0, 0, PART, low);
    set_slot(vm, 1, PART, PART_SIZE, part);
    for (int i = 0; i < vcpu_count; i++) {
        create_vcpu(vm, kvm, i);
        pthread_create(&threads[i], NULL, run_vcpu, &vcpus[i]);
    }
    pin();
    /* All have come to the loop once each has been kicked out of it some times. */
    for (int i = 0; i < WARM_UP || (kicks < vcpu_count * 10UL && i < PATIENCE); i++) {
        usleep(1000);
        update(vm, part);
    }
    take_turns(vm, part);
    atomic_store(&done, true);
    inhibit();
    resume();
    for (int i = 0; i < vcpu_count; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
