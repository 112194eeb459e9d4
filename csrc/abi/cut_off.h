// What must be known of a file before dlopen gets it. For the backends' libraries and oneDNN alike.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#if defined(__linux__) && defined(__LP64__)
#include <elf.h>
#endif

namespace mm {

// Why a file must not be opened as a library; empty where dlopen may judge. One that was cut off has pages that are mapped
// but not there, and touching them ends the process with SIGBUS.
inline std::string cutOff([[maybe_unused]] const std::string& path) {
#if defined(__linux__) && defined(__LP64__)
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const uint64_t size = file ? static_cast<uint64_t>(file.tellg()) : 0;
  Elf64_Ehdr header;
  if (size < sizeof header || !file.seekg(0).read(reinterpret_cast<char*>(&header), sizeof header)) return "";
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64) return "";
  uint64_t end = std::max(header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize, header.e_phoff + header.e_phnum * sizeof(Elf64_Phdr));
  if (header.e_phentsize == sizeof(Elf64_Phdr) && file.seekg(static_cast<std::streamoff>(header.e_phoff)))
    for (int i = 0; i < header.e_phnum; i++) {
      Elf64_Phdr segment;
      if (!file.read(reinterpret_cast<char*>(&segment), sizeof segment)) break;
      if (segment.p_type == PT_LOAD) end = std::max(end, segment.p_offset + segment.p_filesz);
    }
  if (size < end) return "the file is truncated: " + std::to_string(size) + " of " + std::to_string(end) + " bytes; build or install it again";
#endif
  return "";
}

}  // namespace mm
