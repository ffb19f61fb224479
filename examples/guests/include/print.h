/* Text over the serial line, for guests in C. One vCPU prints at a time; there is no lock. */
#ifndef PRINT_H
#define PRINT_H

void print(const char *text);
void print_decimal(unsigned long value);
void print_hex(unsigned long value); /* as 0x1f */

#endif
