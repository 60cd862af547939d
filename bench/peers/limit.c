/* The limit: the cost of a server that only calls `send` once per message and client. `limit <port> <redis port>`
 *
 * It has one topic, subscribes each client on SUBSCRIBE, and parses as little as possible; a real server does more.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENTS 20000
#define BYTES (1 << 20)
/* The accept key for the example key of RFC 6455, which the load sends. */
#define ACCEPT "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" \
               "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
#define JOINED "{\"type\":\"ACKNOWLEDGMENT\",\"operation\":\"subscribe\",\"status\":\"success\"}"

static int members[CLIENTS], member_count, epoll_fd;
static char open_already[CLIENTS * 2];

static void put(int fd, const char *data, size_t size) {
  while (size) {
    ssize_t sent = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      data += sent, size -= sent;
      continue;
    }
    struct pollfd full = {.fd = fd, .events = POLLOUT};
    if (poll(&full, 1, 1000) != 1 || full.revents & (POLLERR | POLLHUP)) return;
  }
}

static size_t frame(char *into, const char *text, size_t size) {
  into[0] = (char)0x81;
  size_t head = 2;
  if (size < 126) into[1] = size;
  else into[1] = 126, into[2] = size >> 8, into[3] = size & 255, head = 4;
  memcpy(into + head, text, size);
  return head + size;
}

static void on_client(int fd) {
  static char data[65536], answer[256];
  if (recv(fd, data, sizeof data, 0) <= 0) {
    for (int i = 0; i < member_count; i++)
      if (members[i] == fd) members[i--] = members[--member_count];
    open_already[fd] = 0;
    close(fd);
  } else if (!open_already[fd]) {
    open_already[fd] = 1;
    put(fd, ACCEPT, strlen(ACCEPT));
  } else { /* one frame of a client means SUBSCRIBE here */
    members[member_count++] = fd;
    put(fd, answer, frame(answer, JOINED, strlen(JOINED)));
  }
}

/* What Redis says on a channel: three bulk strings, "message", the channel, the text. */
static void on_redis(int fd) {
  static char data[BYTES], framed[65536];
  static size_t size;
  ssize_t more = recv(fd, data + size, BYTES - size, 0);
  if (more <= 0) exit(1);
  size += more;
  size_t taken = 0;
  for (;;) {
    char *at = data + taken, *end = data + size;
    if (at == end || !(at = memchr(at, '\n', end - at))) break;
    at++;
    const char *parts[3];
    size_t sizes[3];
    int part = 0;
    for (; part < 3; part++) {
      char *line = at < end ? memchr(at, '\n', end - at) : NULL;
      if (!line) break;
      int number = *at == ':';
      sizes[part] = number ? 0 : strtoul(at + 1, NULL, 10);
      parts[part] = line + 1;
      at = line + 1 + (number ? 0 : sizes[part] + 2);
      if (at > end) break;
    }
    if (part < 3) break;
    taken = at - data;
    if (sizes[0] != 7 || memcmp(parts[0], "message", 7)) continue;
    size_t whole = frame(framed, parts[2], sizes[2]);
    for (int i = 0; i < member_count; i++) put(members[i], framed, whole);
  }
  memmove(data, data + taken, size -= taken);
}

static int address(struct sockaddr_in *to, const char *port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  *to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(0x7f000001)};
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

static void watch(int fd) {
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

int main(int count, char **words) {
  if (count != 3) return 2;
  struct sockaddr_in to;
  struct epoll_event events[64];
  signal(SIGPIPE, SIG_IGN);
  epoll_fd = epoll_create1(0);
  int redis = address(&to, words[2]);
  if (connect(redis, (struct sockaddr *)&to, sizeof to)) return 1;
  put(redis, "SUBSCRIBE bench:t00000\r\n", 24);
  watch(redis);
  int listener = address(&to, words[1]);
  if (bind(listener, (struct sockaddr *)&to, sizeof to) || listen(listener, 4096)) return 1;
  watch(listener);
  for (;;) {
    int ready = epoll_wait(epoll_fd, events, 64, -1);
    for (int i = 0; i < ready; i++) {
      int fd = events[i].data.fd;
      if (fd == redis) on_redis(fd);
      else if (fd != listener) on_client(fd);
      else {
        int one = 1;
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(client);
      }
    }
  }
}
