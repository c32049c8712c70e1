/* DNS load over UDP, one thread: closed loop (a fixed number of queries outstanding) or open loop (a fixed rate).
 *
 * Usage: loadgen ADDRESS PORT QUERIES SECONDS WINDOW SOCKETS RATE CASE
 *   QUERIES  file of queries, each a 16-bit big-endian length and the message; ids are filled in here
 *   WINDOW   queries outstanding in the closed loop (RATE 0)
 *   SOCKETS  source ports, so that SO_REUSEPORT spreads the load over several workers
 *   RATE     queries a second of the open loop; 0: closed loop
 *   CASE     1: fresh random case of every letter in every query (draft-vixie-dnsext-dns0x20), checked in the reply
 *
 * Prints one JSON object. A query unanswered for a second counts as lost. Latencies are in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, MAX_SOCKETS = 64, REPLY = 4096, QUERY = 512, IDS = 65536 };

struct flight {
    uint64_t sent_ns; /* 0: free */
    uint16_t size, socket;
    uint8_t question[256]; /* name as asked, to compare in the reply */
    uint16_t question_size;
};

static struct flight flights[IDS];
static uint8_t *queries;
static size_t *starts, query_count;
static uint32_t *latencies_us;
static size_t latency_count, latency_room;
static uint64_t rng = 0x9e3779b97f4a7c15ull;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(void) {
    rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
    return rng;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void load(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) fail(path);
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    queries = malloc((size_t)size);
    starts = malloc(sizeof *starts * ((size_t)size / 3 + 1));
    if (!queries || !starts || fread(queries, 1, (size_t)size, f) != (size_t)size) fail("read");
    for (size_t at = 0; at + 2 < (size_t)size; at += 2 + ((size_t)queries[at] << 8 | queries[at + 1])) starts[query_count++] = at;
    fclose(f);
}

/* The next query into `out`, with `id` and, if asked, fresh case; returns its size. */
static size_t build(uint8_t *out, unsigned id, int random_case, struct flight *flight) {
    static size_t next;
    const uint8_t *q = queries + starts[next++ % query_count];
    size_t size = (size_t)q[0] << 8 | q[1], at = 12;
    memcpy(out, q + 2, size);
    out[0] = (uint8_t)(id >> 8), out[1] = (uint8_t)id;
    uint64_t bits = 0;
    int left = 0;
    while (out[at]) {
        uint8_t n = out[at++];
        for (; n; n--, at++) {
            if (!random_case || ((out[at] | 0x20) < 'a') || ((out[at] | 0x20) > 'z')) continue;
            if (!left) bits = next_random(), left = 64;
            if (bits & 1) out[at] ^= 0x20;
            bits >>= 1, left--;
        }
    }
    flight->question_size = (uint16_t)(at + 1 - 12);
    memcpy(flight->question, out + 12, flight->question_size);
    return size;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t quantile(double q) {
    return latency_count ? latencies_us[(size_t)(q * (double)(latency_count - 1))] : 0;
}

int main(int argc, char **argv) {
    if (argc != 9) return fprintf(stderr, "usage: loadgen ADDRESS PORT QUERIES SECONDS WINDOW SOCKETS RATE CASE\n"), 2;
    load(argv[3]);
    double seconds = atof(argv[4]);
    int window = atoi(argv[5]), socket_count = atoi(argv[6]), random_case = atoi(argv[8]);
    double rate = atof(argv[7]);
    if (!query_count || window < 1 || window > 32768 || socket_count < 1 || socket_count > MAX_SOCKETS) return 2;
    struct pollfd polls[MAX_SOCKETS];
    for (int i = 0; i < socket_count; i++) {
        union { struct sockaddr_in v4; struct sockaddr_in6 v6; struct sockaddr any; } a = {0};
        socklen_t length;
        if (strchr(argv[1], ':')) {
            a.v6.sin6_family = AF_INET6, a.v6.sin6_port = htons((uint16_t)atoi(argv[2])), length = sizeof a.v6;
            if (inet_pton(AF_INET6, argv[1], &a.v6.sin6_addr) != 1) return 2;
        } else {
            a.v4.sin_family = AF_INET, a.v4.sin_port = htons((uint16_t)atoi(argv[2])), length = sizeof a.v4;
            if (inet_pton(AF_INET, argv[1], &a.v4.sin_addr) != 1) return 2;
        }
        int fd = socket(a.any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK, 0), room = 4 << 20;
        if (fd < 0 || connect(fd, &a.any, length)) fail("socket");
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        polls[i] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    latency_room = 1 << 22;
    latencies_us = malloc(latency_room * sizeof *latencies_us);
    static uint8_t in[BATCH][REPLY], out[BATCH][QUERY];
    struct mmsghdr in_msgs[BATCH] = {0}, out_msgs[BATCH] = {0};
    struct iovec in_iov[BATCH], out_iov[BATCH];
    for (int i = 0; i < BATCH; i++) {
        in_iov[i] = (struct iovec){in[i], REPLY}, out_iov[i] = (struct iovec){out[i], 0};
        in_msgs[i].msg_hdr.msg_iov = &in_iov[i], in_msgs[i].msg_hdr.msg_iovlen = 1;
        out_msgs[i].msg_hdr.msg_iov = &out_iov[i], out_msgs[i].msg_hdr.msg_iovlen = 1;
    }
    uint64_t sent = 0, received = 0, lost = 0, wrong = 0, bytes = 0, answers = 0, rcodes[16] = {0};
    uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9), swept = begin, sum_us = 0;
    unsigned next_id = 0;
    int outstanding = 0;
    for (;;) {
        uint64_t now = now_ns();
        if (now >= end + 1000000000ull || (now >= end && !outstanding)) break;
        int got_any = 0;
        for (int s = 0; s < socket_count; s++) {
            int quota = 0; /* how many queries to send on this socket now */
            int n = recvmmsg(polls[s].fd, in_msgs, BATCH, MSG_DONTWAIT, NULL);
            if (n > 0) now = now_ns(), got_any = 1;
            for (int i = 0; i < n; i++) {
                uint8_t *r = in[i];
                unsigned size = in_msgs[i].msg_len;
                struct flight *f = &flights[r[0] << 8 | r[1]];
                if (size < 12 || !(r[2] & 0x80) || !f->sent_ns || f->socket != s) { wrong++; continue; }
                if (size >= 12u + f->question_size ? memcmp(r + 12, f->question, f->question_size) : 1) wrong++;
                uint32_t us = (uint32_t)((now - f->sent_ns) / 1000);
                sum_us += us;
                if (latency_count < latency_room) latencies_us[latency_count++] = us;
                else latencies_us[next_random() % latency_room] = us;
                f->sent_ns = 0;
                outstanding--, received++, bytes += size, rcodes[r[3] & 15]++;
                answers += (unsigned)(r[6] << 8 | r[7]) > 0;
                if (rate == 0) quota++;
            }
            if (now >= end) continue;
            if (rate > 0) {
                double due = (double)(now - begin) / 1e9 * rate - (double)sent;
                quota = due < 1 ? 0 : due > BATCH ? BATCH : (int)due;
                if (quota && socket_count > 1 && quota > 4) quota = (quota + socket_count - 1) / socket_count;
            } else if (!sent || outstanding + quota < window) {
                int share = (window + socket_count - 1) / socket_count;
                int missing = window - outstanding;
                if (missing > quota) quota = missing < share ? missing : share;
            }
            int made = 0;
            for (; made < quota && made < BATCH; made++) {
                struct flight *f;
                int tries = 0;
                do f = &flights[next_id = (next_id + 1) & 0xffff]; while (f->sent_ns && ++tries < IDS);
                if (tries == IDS) break;
                f->size = (uint16_t)build(out[made], next_id, random_case, f);
                f->socket = (uint16_t)s, f->sent_ns = now;
                out_iov[made].iov_len = f->size;
            }
            for (int at = 0; at < made;) {
                int done = sendmmsg(polls[s].fd, out_msgs + at, (unsigned)(made - at), 0);
                if (done < 0) {
                    if (errno != EAGAIN && errno != ECONNREFUSED && errno != ENOBUFS) fail("sendmmsg");
                    struct pollfd p = {.fd = polls[s].fd, .events = POLLOUT};
                    poll(&p, 1, 1);
                    if (now_ns() > end) { made = at; break; }
                    continue;
                }
                at += done;
            }
            sent += (uint64_t)made, outstanding += made;
        }
        if (now - swept > 100000000ull) {
            swept = now;
            for (int i = 0; i < IDS; i++)
                if (flights[i].sent_ns && now - flights[i].sent_ns > 1000000000ull) flights[i].sent_ns = 0, lost++, outstanding--;
        }
        if (!got_any) {
            struct timespec wait = {0, rate > 0 ? 50000 : 1000000};
            ppoll(polls, (nfds_t)socket_count, &wait, NULL);
        }
    }
    double took = (double)((now_ns() < end ? now_ns() : end) - begin) / 1e9;
    lost += (uint64_t)outstanding;
    qsort(latencies_us, latency_count, sizeof *latencies_us, by_value);
    printf("{\"sent\":%lu,\"received\":%lu,\"lost\":%lu,\"wrong\":%lu,\"seconds\":%.3f,\"qps\":%.0f,\"bytes\":%lu,\"with_answer\":%lu,"
           "\"mean_us\":%.1f,\"p50_us\":%u,\"p90_us\":%u,\"p99_us\":%u,\"p999_us\":%u,\"max_us\":%u,"
           "\"noerror\":%lu,\"formerr\":%lu,\"servfail\":%lu,\"nxdomain\":%lu,\"notimp\":%lu,\"refused\":%lu}\n",
           sent, received, lost, wrong, took, (double)received / took, bytes, answers,
           received ? (double)sum_us / (double)received : 0.0, quantile(.5), quantile(.9), quantile(.99), quantile(.999), quantile(1),
           rcodes[0], rcodes[1], rcodes[2], rcodes[3], rcodes[4], rcodes[5]);
    return 0;
}
