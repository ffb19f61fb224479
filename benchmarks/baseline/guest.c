/* The least that a VMM in C does for a measuring guest: run it, take its bytes, count its exits.
 *
 *   guest IMAGE COUNT PORT MEMORY SINK [coalesced]
 *
 * IMAGE goes to 0x7C00 and is entered there in real mode, with COUNT at 0x7C04. Each byte that the guest writes to
 * PORT, or to memory where none is (MEMORY bytes lie from 0 on), goes into a buffer and from there to the file SINK.
 * A write to port 0xF4 ends the run. With `coalesced`, the kernel queues the writes to PORT. Prints one line of JSON;
 * `seconds` is the time between the first entry and the last exit, with the buffer written out.
 */
#include "common.h"

enum { LOAD_ADDRESS = 0x7C00, COUNT_ADDRESS = 0x7C04, WRITTEN_ADDRESS = 0x7C08, EXIT_PORT = 0xF4, CHUNK = 4096 };

static char pending[CHUNK];
static size_t pending_size;
static unsigned long delivered;
static int sink;

static void flush(void)
{
    for (size_t done = 0; done < pending_size;) {
        ssize_t taken = write(sink, pending + done, pending_size - done);

        if (taken < 0)
            fail("write to the sink");
        done += taken;
    }
    delivered += pending_size;
    pending_size = 0;
}

static void put(char byte)
{
    pending[pending_size++] = byte;
    if (pending_size == CHUNK)
        flush();
}

static void drain(struct kvm_coalesced_mmio_ring *ring)
{
    const uint32_t capacity = (4096 - sizeof *ring) / sizeof(struct kvm_coalesced_mmio);
    uint32_t first = ring->first, last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);

    while (first != last) {
        put(ring->coalesced_mmio[first].data[0]);
        first = (first + 1) % capacity;
    }
    __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
}

static void load(const char *path, char *ram, uint32_t count)
{
    int image = open(path, O_RDONLY);

    if (image < 0 || read(image, ram + LOAD_ADDRESS, 65536) <= 0)
        fail(path);
    close(image);
    memcpy(ram + COUNT_ADDRESS, &count, sizeof count);
}

static void enter_real_mode(int vcpu)
{
    struct kvm_regs regs = {.rip = LOAD_ADDRESS, .rsp = LOAD_ADDRESS, .rflags = 2};
    struct kvm_sregs sregs;
    struct kvm_segment *segments[] = {&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss};

    call(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    for (size_t i = 0; i < sizeof segments / sizeof *segments; i++)
        segments[i]->base = segments[i]->selector = 0;
    call(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    call(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

/* Run to the end; return the exits for bytes. */
static unsigned long run_guest(int vcpu, struct kvm_run *run, uint16_t port, struct kvm_coalesced_mmio_ring *ring)
{
    unsigned long exits = 0;

    for (;;) {
        if (ioctl(vcpu, KVM_RUN, NULL) < 0)
            fail("KVM_RUN");
        if (ring)
            drain(ring);
        if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT && run->io.port == port) {
            put(*((char *)run + run->io.data_offset));
            exits++;
        } else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write) {
            put(run->mmio.data[0]);
            exits++;
        } else if (run->exit_reason == KVM_EXIT_IO && run->io.port == EXIT_PORT) {
            flush();
            return exits;
        } else {
            fprintf(stderr, "exit reason %u at port %#x\n", run->exit_reason, run->io.port);
            exit(1);
        }
    }
}

int main(int count, char **arguments)
{
    if (count < 6)
        return fprintf(stderr, "usage: guest IMAGE COUNT PORT MEMORY SINK [coalesced]\n"), 2;
    uint16_t port = strtoul(arguments[3], NULL, 0);
    size_t memory = strtoul(arguments[4], NULL, 0);
    int kvm, vm = create_vm(&kvm);
    char *ram = map_ram(memory);
    int page = sysconf(_SC_PAGESIZE);

    sink = open(arguments[5], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (sink < 0)
        fail(arguments[5]);
    load(arguments[1], ram, strtoul(arguments[2], NULL, 0));
    call(vm, KVM_SET_TSS_ADDR, (void *)0xFEFFD000, "KVM_SET_TSS_ADDR");
    set_slot(vm, 0, 0, memory, ram);

    int vcpu = call(vm, KVM_CREATE_VCPU, NULL, "KVM_CREATE_VCPU");
    int size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_coalesced_mmio_ring *ring = NULL;

    if (run == MAP_FAILED)
        fail("mmap of the vCPU");
    if (count > 6) {
        struct kvm_coalesced_mmio_zone zone = {.addr = port, .size = 1, .pio = 1};
        int at = call(vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_COALESCED_MMIO, "KVM_CHECK_EXTENSION");

        call(vm, KVM_REGISTER_COALESCED_MMIO, &zone, "KVM_REGISTER_COALESCED_MMIO");
        ring = (void *)((char *)run + (size_t)at * page);
    }
    enter_real_mode(vcpu);

    double started = seconds();
    unsigned long exits = run_guest(vcpu, run, port, ring);
    double ended = seconds();
    uint32_t written;

    memcpy(&written, ram + WRITTEN_ADDRESS, sizeof written);
    printf("{\"seconds\": %.9f, \"exits\": %lu, \"guest_count\": %u, \"delivered\": %lu, \"peak_kib\": %ld}\n",
           ended - started, exits, written, delivered, peak_kib());
    return 0;
}
