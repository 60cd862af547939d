/* Load generator for WebSocket servers: connects, subscribes, publishes, counts messages and their delays.
 *
 * Reads one command per line from standard input, `name key=value ...`, and answers with one JSON object per line:
 *
 *   connect  ports=port,port path= script= count= topics= parallel= seconds= [sources=] [place=] [spread=] [stall=]
 *            [deflate=1: offer compression; compressed messages are counted, not read]
 *   publish  via=redis|http|ws ports=port,port template= topics= fan= rate= (0: saturation) window= publishers=
 *            warm= seconds= drain= servers=pid,pid beside=pid,pid [path= script=]
 *   idle     seconds= servers= beside=
 *   close
 *
 * A script has one client's messages and expected replies, one per line: `> text` is sent, `< text` must appear in a
 * reply. In scripts and templates ##### is the topic's number. In scripts {place} is `place` minus the client's number
 * modulo `spread`. In templates 19 times @ is replaced by the time in ns; it returns after "at":" .
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARKER "\"at\":\""
#define MARKER_SIZE 6
#define TIME_DIGITS 19
#define READ_BYTES (1 << 20)
#define MAX_STEPS 16
#define MAX_PORTS 16
#define BUCKETS (64 * 40)

enum kind { CLIENT, PUBLISHER };
enum state { CONNECTING, UPGRADING, TALKING, READY, DEAD };

struct socket {
  int fd, number, step;
  enum kind kind;
  enum state state;
  char *rest; /* bytes of an incomplete frame or response */
  size_t rest_size;
  char *out; /* bytes that the kernel has not accepted yet */
  size_t out_size, out_room;
  bool wants_write, busy;
};

struct script {
  struct { bool says; char *text; } steps[MAX_STEPS];
  int count;
};

static int epoll_fd;
static struct socket *clients;
static int client_count, ready_count, failed_count, closed_count, parallel_now;
static struct script client_script, publisher_script;
static char client_path[256];
static int client_ports[MAX_PORTS], client_port_count, client_topics = 1, sources = 1, stall, deflate;
static long place, spread;

static struct socket *publishers;
static int publisher_count;
static enum { REDIS, HTTP, WS } via;
static char publisher_path[256];
static char *template;
static size_t template_size;
static long published, answered, refused, received, received_bytes;
static bool measuring;
static long delays[BUCKETS];
static char *buffer;
static int64_t read_at; /* when the current input was read: one clock call for many messages */

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what) {
  printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
  fflush(stdout);
  exit(1);
}

/* ---- figures */

static int bucket_of(int64_t us) {
  if (us < 0) us = 0;
  if (us < 64) return us;
  int e = 63 - __builtin_clzll(us);
  int at = (e - 5) * 64 + ((us >> (e - 6)) & 63);
  return at < BUCKETS ? at : BUCKETS - 1;
}

static int64_t bucket_us(int at) {
  return at < 64 ? at : (int64_t)(64 + at % 64) << (at / 64 - 1);
}

/* User and system time of the processes `pids` with all threads, in seconds. Uses the processes' clocks, because /proc
 * counts in hundredths of a second, which is too coarse for short measurements. */
static double cpu_of(const char *pids) {
  double seconds = 0;
  while (pids && *pids) {
    clockid_t clock;
    struct timespec used;
    long pid = strtol(pids, (char **)&pids, 10);
    if (*pids == ',') pids++;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &used)) continue; /* it has exited */
    seconds += used.tv_sec + used.tv_nsec / 1e9;
  }
  return seconds;
}

/* Busy time of all cores, in seconds. */
static double busy_cpu(void) {
  unsigned long user = 0, nice = 0, system = 0, idle, wait, hard = 0, soft = 0, stolen = 0;
  FILE *file = fopen("/proc/stat", "r");
  if (!file) fail("/proc/stat");
  if (fscanf(file, "cpu %lu %lu %lu %lu %lu %lu %lu %lu", &user, &nice, &system, &idle, &wait, &hard, &soft, &stolen) != 8)
    fail("/proc/stat");
  fclose(file);
  return (double)(user + nice + system + hard + soft + stolen) / sysconf(_SC_CLK_TCK);
}

static double own_cpu(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void on_marked(const char *text, size_t size) {
  static size_t usual; /* messages of one run are alike */
  const char *at = NULL;
  if (usual + MARKER_SIZE + TIME_DIGITS <= size && !memcmp(text + usual, MARKER, MARKER_SIZE)) at = text + usual;
  else at = memmem(text, size, MARKER, MARKER_SIZE);
  if (!at || at + MARKER_SIZE + TIME_DIGITS > text + size) return;
  usual = at - text;
  received++;
  if (!measuring) return;
  int64_t sent = 0;
  for (const char *digit = at + MARKER_SIZE; digit < at + MARKER_SIZE + TIME_DIGITS; digit++)
    sent = sent * 10 + (*digit - '0');
  delays[bucket_of((read_at - sent) / 1000)]++;
}

/* ---- sockets */

static void watch(struct socket *s, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = s};
  if (epoll_ctl(epoll_fd, operation, s->fd, &event)) fail("epoll_ctl");
}

static void end(struct socket *s) {
  if (s->state == DEAD) return;
  if (s->kind == CLIENT) {
    if (s->state == READY) closed_count++, ready_count--;
    else failed_count++, parallel_now--;
  } else refused++;
  close(s->fd);
  free(s->rest);
  free(s->out);
  s->rest = s->out = NULL;
  s->rest_size = s->out_size = s->out_room = 0;
  s->state = DEAD;
}

static void put(struct socket *s, const char *data, size_t size) {
  if (!s->out_size) {
    ssize_t sent = send(s->fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return end(s);
    if (sent > 0) data += sent, size -= sent;
    if (!size) return;
  }
  if (s->out_size + size > s->out_room) {
    s->out_room = 2 * (s->out_size + size);
    s->out = realloc(s->out, s->out_room);
    if (!s->out) fail("memory");
  }
  memcpy(s->out + s->out_size, data, size);
  s->out_size += size;
  if (!s->wants_write) watch(s, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT), s->wants_write = true;
}

static void put_rest(struct socket *s) {
  if (s->out_size) {
    ssize_t sent = send(s->fd, s->out, s->out_size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return end(s);
    if (sent > 0) memmove(s->out, s->out + sent, s->out_size -= sent);
  }
  if (!s->out_size && s->wants_write) watch(s, EPOLL_CTL_MOD, EPOLLIN), s->wants_write = false;
}

/* Client frames are masked; a mask of zeros leaves the text unchanged. */
static void put_frame(struct socket *s, int opcode, const char *text, size_t size) {
  char frame[size + 14];
  size_t head = 2;
  frame[0] = (char)(0x80 | opcode);
  if (size < 126) frame[1] = (char)(0x80 | size);
  else if (size < 65536) frame[1] = (char)0xfe, frame[2] = size >> 8, frame[3] = size & 255, head = 4;
  else return end(s);
  memset(frame + head, 0, 4);
  memcpy(frame + head + 4, text, size);
  put(s, frame, head + 4 + size);
}

static void open_socket(struct socket *s, int port, const char *path) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(0x7f000001)};
  struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + s->number % sources)};
  int one = 1;
  s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (s->fd < 0) fail("socket");
  setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  /* Redis' protected mode accepts only 127.0.0.1. */
  if (s->kind == CLIENT && bind(s->fd, (struct sockaddr *)&from, sizeof from)) fail("bind");
  int small = 4096; /* a stalled client must not have megabytes of kernel buffers */
  if (s->kind == CLIENT && s->number < stall) setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  s->state = CONNECTING;
  s->step = 0;
  s->wants_write = path != NULL;
  if (connect(s->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) fail("connect");
  watch(s, EPOLL_CTL_ADD, EPOLLIN | (path ? EPOLLOUT : 0));
}

/* Send the next lines of the script; ready when no reply is outstanding. */
static void go_on(struct socket *s) {
  struct script *script = s->kind == CLIENT ? &client_script : &publisher_script;
  while (s->state == TALKING && s->step < script->count && script->steps[s->step].says) {
    char said[4096], number[16], *at;
    snprintf(said, sizeof said, "%s", script->steps[s->step].text);
    snprintf(number, sizeof number, "%05d", s->number % client_topics);
    while ((at = strstr(said, "#####"))) memcpy(at, number, 5);
    if ((at = strstr(said, "{place}"))) {
      char tail[2048];
      snprintf(tail, sizeof tail, "%s", at + 7);
      snprintf(at, said + sizeof said - at, "%ld%s", place - (spread ? s->number % spread : 0), tail);
    }
    s->step++;
    put_frame(s, 1, said, strlen(said));
  }
  if (s->state == TALKING && s->step == script->count) {
    s->state = READY;
    if (s->kind == CLIENT) ready_count++, parallel_now--;
    else s->busy = false;
  }
}

static void on_text(struct socket *s, const char *text, size_t size) {
  if (size == 1 && *text == '2') return put_frame(s, 1, "3", 1); /* Engine.IO's ping */
  if (size == 2 && !memcmp(text, "{}", 2)) return put_frame(s, 1, "{}", 2); /* Centrifugo's ping */
  struct script *script = s->kind == CLIENT ? &client_script : &publisher_script;
  if (s->state == TALKING) {
    const char *wanted = script->steps[s->step].text;
    if (memmem(text, size, wanted, strlen(wanted))) {
      s->step++;
      return go_on(s);
    }
  }
  if (s->kind == PUBLISHER && s->state == READY) {
    if (memmem(text, size, "\"publish\"", 9)) answered++, s->busy = false;
    else if (memmem(text, size, "\"ERROR\"", 7) || memmem(text, size, "\"error\"", 7)) refused++, s->busy = false;
    return;
  }
  on_marked(text, size);
}

/* Centrifugo joins messages in one frame, with newlines. No contender has a newline inside a message. */
static void on_frame(struct socket *s, const char *text, size_t size) {
  const char *end = text + size, *newline;
  while ((newline = memchr(text, '\n', end - text))) {
    on_text(s, text, newline - text);
    text = newline + 1;
  }
  if (text < end) on_text(s, text, end - text);
}

/* Process complete frames in `data`; return their size in bytes. */
static size_t take_frames(struct socket *s, const char *data, size_t size) {
  size_t at = 0;
  while (size - at >= 2 && s->state != DEAD) {
    const unsigned char *p = (const unsigned char *)data + at;
    size_t length = p[1] & 127, head = 2;
    if (length == 126) {
      if (size - at < 4) break;
      length = p[2] << 8 | p[3], head = 4;
    } else if (length == 127) {
      if (size - at < 10) break;
      length = 0;
      for (int i = 2; i < 10; i++) length = length << 8 | p[i];
      head = 10;
    }
    if (size - at < head + length) break;
    int opcode = p[0] & 15;
    if (p[0] & 0x40) received++;
    else if (opcode == 1 || opcode == 2) on_frame(s, data + at + head, length);
    else if (opcode == 9) put_frame(s, 10, data + at + head, length);
    else if (opcode == 8) { end(s); break; }
    at += head + length;
  }
  return at;
}

static size_t take_http(struct socket *s, const char *data, size_t size) {
  size_t at = 0;
  for (;;) {
    const char *end_of_head = memmem(data + at, size - at, "\r\n\r\n", 4);
    if (!end_of_head) return at;
    if (s->state == UPGRADING) {
      if (memcmp(data, "HTTP/1.1 101", 12)) { end(s); return size; }
      s->state = TALKING;
      go_on(s);
      return end_of_head + 4 - data;
    }
    const char *length = strcasestr(data + at, "content-length:"); /* the buffer ends with a zero */
    size_t whole;
    if (length && length < end_of_head) whole = end_of_head + 4 - (data + at) + strtol(length + 15, NULL, 10);
    else if (memmem(data + at, end_of_head - (data + at), "chunked", 7)) {
      const char *last = memmem(end_of_head + 2, data + size - end_of_head - 2, "\r\n0\r\n\r\n", 7);
      if (!last) return at;
      whole = last + 7 - (data + at);
    } else { end(s); return size; }
    if (size - at < whole) return at;
    /* Centrifugo reports errors in responses with status 200. */
    if (!memcmp(data + at, "HTTP/1.1 200", 12) && !memmem(data + at, whole, "\"error\":", 8)) answered++;
    else refused++;
    s->busy = false;
    at += whole;
  }
}

static size_t take_redis(const char *data, size_t size) {
  size_t at = 0;
  const char *line;
  while ((line = memchr(data + at, '\n', size - at))) {
    if (data[at] == ':') answered++;
    else refused++;
    at = line + 1 - data;
  }
  return at;
}

static void on_readable(struct socket *s) {
  size_t size = s->rest_size;
  if (size) memcpy(buffer, s->rest, size);
  ssize_t more = recv(s->fd, buffer + size, READ_BYTES - size, 0);
  if (more < 0 && errno == EAGAIN) return;
  if (more <= 0) return end(s);
  read_at = now_ns();
  if (s->kind == CLIENT) received_bytes += more;
  size += more;
  buffer[size] = 0;
  size_t taken = 0;
  if (s->kind == PUBLISHER && via == REDIS) taken = take_redis(buffer, size);
  else {
    if (s->state == UPGRADING || (s->kind == PUBLISHER && via == HTTP)) taken = take_http(s, buffer, size);
    if (s->state == TALKING || (s->state == READY && (s->kind == CLIENT || via == WS)))
      taken += take_frames(s, buffer + taken, size - taken);
  }
  if (s->state == DEAD) return;
  size_t left = size - taken;
  if (left != s->rest_size) {
    free(s->rest);
    s->rest = left ? malloc(left) : NULL;
    s->rest_size = left;
  }
  if (left) memcpy(s->rest, buffer + taken, left);
}

static void on_writable(struct socket *s) {
  if (s->state != CONNECTING) return put_rest(s);
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) return end(s);
  char request[1024];
  snprintf(request, sizeof request,
           "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 "
           "(KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
           s->kind == CLIENT ? client_path : publisher_path,
           s->kind == CLIENT && deflate ? "Sec-WebSocket-Extensions: permessage-deflate\r\n" : "");
  s->state = UPGRADING;
  put(s, request, strlen(request));
  if (s->state != DEAD) put_rest(s);
}

static void serve(int64_t until) {
  struct epoll_event events[256];
  int64_t left = until - now_ns();
  struct timespec wait = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
  int count = epoll_pwait2(epoll_fd, events, 256, &wait, NULL);
  if (count < 0 && errno != EINTR) fail("epoll_pwait2");
  for (int i = 0; i < count; i++) {
    struct socket *s = events[i].data.ptr;
    if (s->state != DEAD && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && s->state != CONNECTING) on_readable(s);
    if (s->state != DEAD && events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) on_writable(s);
  }
}

/* ---- commands */

static const char *word(const char *line, const char *name, const char *otherwise) {
  static char values[16][512];
  static int next;
  char wanted[64];
  snprintf(wanted, sizeof wanted, " %s=", name);
  const char *at = strstr(line, wanted);
  if (!at) return otherwise;
  char *value = values[next++ % 16];
  sscanf(at + strlen(wanted), "%511s", value);
  return value;
}

static double number(const char *line, const char *name, double otherwise) {
  const char *value = word(line, name, NULL);
  return value ? atof(value) : otherwise;
}

/* The numbers of "ports="; returns how many there are. */
static int read_ports(const char *line, int *ports) {
  int count = 0;
  for (char *at = (char *)word(line, "ports", ""); *at && count < MAX_PORTS; at += *at == ',')
    ports[count++] = strtol(at, &at, 10);
  if (!count) fail("a command without ports");
  return count;
}

static char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) fail(path);
  char *data = calloc(1, 1 << 20);
  *size = fread(data, 1, (1 << 20) - 1, file);
  fclose(file);
  return data;
}

static void read_script(struct script *script, const char *path) {
  size_t size;
  script->count = 0;
  if (!*path) return;
  char *text = read_file(path, &size);
  for (char *line = strtok(text, "\n"); line && script->count < MAX_STEPS; line = strtok(NULL, "\n")) {
    script->steps[script->count].says = line[0] == '>';
    script->steps[script->count++].text = line + 2;
  }
}

static void do_connect(const char *line) {
  int count = number(line, "count", 1), parallel = number(line, "parallel", 100);
  stall = number(line, "stall", 0);
  deflate = number(line, "deflate", 0);
  snprintf(client_path, sizeof client_path, "%s", word(line, "path", "/ws"));
  read_script(&client_script, word(line, "script", ""));
  client_port_count = read_ports(line, client_ports);
  client_topics = number(line, "topics", 1);
  sources = number(line, "sources", 250); /* like real clients: many addresses, few clients each */
  place = number(line, "place", 0);
  spread = number(line, "spread", 0);
  clients = calloc(count, sizeof *clients);
  client_count = 0;
  ready_count = failed_count = closed_count = parallel_now = 0;
  received = 0;
  double cpu = own_cpu();
  int64_t begin = now_ns(), deadline = begin + number(line, "seconds", 60) * 1e9;
  while (ready_count + failed_count + closed_count < count && now_ns() < deadline) {
    while (client_count < count && parallel_now < parallel) {
      struct socket *s = &clients[client_count];
      s->number = client_count++;
      s->kind = CLIENT;
      parallel_now++;
      open_socket(s, client_ports[s->number % client_port_count], client_path);
    }
    serve(now_ns() + 50000000);
  }
  for (int i = 0; i < stall && i < count; i++)
    if (clients[i].state == READY) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, clients[i].fd, NULL);
  printf("{\"ready\": %d, \"failed\": %d, \"seconds\": %.6f, \"load_cpu\": %.6f, \"received\": %ld}\n", ready_count,
         count - ready_count, (now_ns() - begin) / 1e9, own_cpu() - cpu, received);
}

static void publish_one(struct socket *s, int topics) {
  static unsigned next_topic;
  char stamp[TIME_DIGITS + 1], number[16], *at;
  snprintf(stamp, sizeof stamp, "%019lld", (long long)now_ns());
  snprintf(number, sizeof number, "%05u", next_topic++ * 7919u % topics); /* a prime: visits all topics, not in order */
  static char *filled;
  if (!filled) filled = malloc(1 << 20);
  memcpy(filled, template, template_size);
  if ((at = memmem(filled, template_size, "@@@@@@@@@@@@@@@@@@@", TIME_DIGITS))) memcpy(at, stamp, TIME_DIGITS);
  at = filled;
  while ((at = memmem(at, template_size - (at - filled), "#####", 5))) memcpy(at, number, 5);
  s->busy = via != REDIS;
  published++;
  if (via == WS) put_frame(s, 1, filled, template_size);
  else put(s, filled, template_size);
}

static struct socket *free_publisher(void) {
  static int next;
  for (int i = 0; i < publisher_count; i++) {
    struct socket *s = &publishers[next++ % publisher_count];
    if (s->state == READY && !s->busy) return s;
  }
  return NULL;
}

static void open_publishers(const char *line) {
  const char *way = word(line, "via", "redis");
  via = !strcmp(way, "http") ? HTTP : !strcmp(way, "ws") ? WS : REDIS;
  int ports[MAX_PORTS], port_count = read_ports(line, ports);
  publisher_count = number(line, "publishers", 1);
  publishers = calloc(publisher_count, sizeof *publishers);
  snprintf(publisher_path, sizeof publisher_path, "%s", word(line, "path", "/ws"));
  read_script(&publisher_script, word(line, "script", ""));
  for (int i = 0; i < publisher_count; i++) {
    struct socket *s = &publishers[i];
    s->kind = PUBLISHER;
    s->number = i;
    s->busy = true;
    open_socket(s, ports[i % port_count], via == WS ? publisher_path : NULL);
    if (via != WS) s->state = READY, s->busy = false;
  }
  for (int64_t deadline = now_ns() + 5000000000; now_ns() < deadline;) {
    int ready = 0;
    for (int i = 0; i < publisher_count; i++) ready += publishers[i].state == READY;
    if (ready == publisher_count) break;
    serve(now_ns() + 10000000);
  }
}

static void do_publish(const char *line) {
  int topics = number(line, "topics", 1);
  double rate = number(line, "rate", 0), fan = number(line, "fan", 1), window = number(line, "window", 500);
  const char *servers = strdup(word(line, "servers", "")), *beside = strdup(word(line, "beside", ""));
  template = read_file(word(line, "template", ""), &template_size);
  published = answered = refused = received = 0;
  memset(delays, 0, sizeof delays);
  open_publishers(line);
  int64_t begin = now_ns(), from = begin + number(line, "warm", 0.5) * 1e9, next = begin, late = 0;
  int64_t until = from + number(line, "seconds", 2) * 1e9;
  long received_before = 0, answered_before = 0, bytes_before = 0;
  double server_cpu = 0, beside_cpu = 0, load_cpu = 0, others_cpu = 0;
  for (int64_t now = begin; now < until; now = now_ns()) {
    if (!measuring && now >= from) {
      measuring = true;
      from = now;
      received_before = received, answered_before = answered, bytes_before = received_bytes;
      server_cpu = cpu_of(servers), beside_cpu = cpu_of(beside), load_cpu = own_cpu();
      others_cpu = busy_cpu();
    }
    if (publishers[0].state == DEAD) errno = ECONNRESET, fail("a publisher was disconnected");
    for (int burst = 0; burst < 64; burst++) {
      if (rate > 0 && next > now) break;
      if (rate <= 0 && fan > 0 && published - received / fan >= window) break;
      if (rate <= 0 && via == REDIS && published - answered >= window) break;
      struct socket *s = free_publisher();
      if (!s) break;
      if (rate > 0) {
        if (now - next > late && measuring) late = now - next;
        next += 1e9 / rate;
      }
      publish_one(s, topics);
    }
    bool more = rate <= 0 && free_publisher() && (fan <= 0 || published - received / fan < window) &&
                (via != REDIS || published - answered < window);
    serve(more ? 0 : rate > 0 && next < until ? next : until);
  }
  double seconds = (now_ns() - from) / 1e9;
  server_cpu = cpu_of(servers) - server_cpu, beside_cpu = cpu_of(beside) - beside_cpu, load_cpu = own_cpu() - load_cpu;
  others_cpu = busy_cpu() - others_cpu - server_cpu - beside_cpu - load_cpu;
  long in_time = received - received_before, answers = answered - answered_before;
  long bytes_in_time = received_bytes - bytes_before;
  measuring = false;
  for (int64_t deadline = now_ns() + number(line, "drain", 2) * 1e9; received < published * fan && now_ns() < deadline;)
    serve(now_ns() + 20000000);
  printf("{\"published\": %ld, \"answered\": %ld, \"refused\": %ld, \"received\": %ld, \"received_bytes\": %ld, "
         "\"lost\": %ld, \"closed\": %d, \"seconds\": %.6f, \"late_ms\": %.3f, \"server_cpu\": %.3f, \"beside_cpu\": %.3f, \"load_cpu\": %.3f, "
         "\"others_cpu\": %.3f, \"delays_us\": [",
         published, answers, refused, in_time, bytes_in_time, (long)(published * fan) - received, closed_count, seconds, late / 1e6,
         server_cpu, beside_cpu, load_cpu, others_cpu > 0 ? others_cpu : 0);
  const char *comma = "";
  for (int at = 0; at < BUCKETS; at++)
    if (delays[at]) printf("%s[%lld, %ld]", comma, (long long)bucket_us(at), delays[at]), comma = ", ";
  printf("]}\n");
  for (int i = 0; i < publisher_count; i++) end(&publishers[i]);
  free(publishers);
  free(template);
  free((char *)servers);
  free((char *)beside);
}

static void do_idle(const char *line) {
  const char *servers = strdup(word(line, "servers", "")), *beside = strdup(word(line, "beside", ""));
  double server_cpu = cpu_of(servers), beside_cpu = cpu_of(beside);
  int64_t begin = now_ns(), until = begin + number(line, "seconds", 1) * 1e9;
  received = 0;
  while (now_ns() < until) serve(until);
  printf("{\"seconds\": %.6f, \"server_cpu\": %.3f, \"beside_cpu\": %.3f, \"received\": %ld, \"closed\": %d}\n",
         (now_ns() - begin) / 1e9, cpu_of(servers) - server_cpu, cpu_of(beside) - beside_cpu, received, closed_count);
  free((char *)servers);
  free((char *)beside);
}

static void do_close(void) {
  for (int i = 0; i < client_count; i++) end(&clients[i]);
  free(clients);
  clients = NULL;
  client_count = 0;
  printf("{}\n");
}

int main(void) {
  char line[4096];
  epoll_fd = epoll_create1(0);
  buffer = malloc(READ_BYTES + 1);
  signal(SIGPIPE, SIG_IGN);
  setvbuf(stdin, NULL, _IONBF, 0);
  /* Between two commands nothing is read: pongs wait for the next command. */
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "connect ", 8)) do_connect(line);
    else if (!strncmp(line, "publish ", 8)) do_publish(line);
    else if (!strncmp(line, "idle ", 5)) do_idle(line);
    else if (!strncmp(line, "close", 5)) do_close();
    else printf("{\"error\": \"unknown command\"}\n");
    fflush(stdout);
  }
  return 0;
}
