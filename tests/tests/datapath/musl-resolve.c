/* Prints the addresses that this program's libc finds for a name. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int count, char **words)
{
	struct addrinfo *found, hints = { .ai_socktype = SOCK_STREAM };
	char text[INET6_ADDRSTRLEN];

	if (count != 2 || getaddrinfo(words[1], "80", &hints, &found))
		return 1;
	for (; found; found = found->ai_next) {
		void *address = found->ai_family == AF_INET
			? (void *)&((struct sockaddr_in *)found->ai_addr)->sin_addr
			: (void *)&((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
		puts(inet_ntop(found->ai_family, address, text, sizeof text));
	}
	return 0;
}
