#include "tests/simt/shared_variables.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>

namespace simt {
namespace {

using Header = ElfW(Ehdr);
using Section = ElfW(Shdr);
using Symbol = ElfW(Sym);

// Where the program was loaded, against the addresses in its file.
std::byte* load_address() {
  ElfW(Addr) address = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t /*bytes*/, void* out) {
        *static_cast<ElfW(Addr)*>(out) = info->dlpi_addr;
        return 1;  // the first is the program itself
      },
      &address);
  return reinterpret_cast<std::byte*>(address);
}

struct Symbols {
  std::multimap<uintptr_t, std::string_view> functions;  // by address in the file
  std::map<std::string_view, MemoryRange> local_statics;
};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "simt: /proc/self/exe: %s; shared memory cannot be found without it\n", what);
  std::exit(3);
}

// The file stays mapped, as the names lie in it.
Symbols read_symbols() {
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (file < 0 || fstat(file, &status) != 0) fail("cannot be read");
  void* memory = mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (memory == MAP_FAILED) fail("cannot be mapped");
  const auto* bytes = static_cast<const char*>(memory);
  const auto* header = reinterpret_cast<const Header*>(bytes);
  const auto* sections = reinterpret_cast<const Section*>(bytes + header->e_shoff);
  Symbols found;
  bool any = false;
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    any = true;
    const auto* symbols = reinterpret_cast<const Symbol*>(bytes + sections[s].sh_offset);
    const char* names = bytes + sections[sections[s].sh_link].sh_offset;
    for (size_t i = 0; i < sections[s].sh_size / sizeof(Symbol); ++i) {
      const std::string_view name = names + symbols[i].st_name;
      const int type = ELF64_ST_TYPE(symbols[i].st_info);
      if (type == STT_FUNC) found.functions.emplace(symbols[i].st_value, name);
      if (type == STT_OBJECT && name.substr(0, 3) == "_ZZ") {
        found.local_statics[name] = {load_address() + symbols[i].st_value, symbols[i].st_size};
      }
    }
  }
  if (!any) fail("has no symbol table");
  return found;
}

std::vector<MemoryRange> find_variables(const void* kernel) {
  static const Symbols kSymbols = read_symbols();
  const uintptr_t address = reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(load_address());
  const auto [first, last] = kSymbols.functions.equal_range(address);
  if (first == last) fail("does not name the kernel");
  std::vector<MemoryRange> variables;
  for (auto function = first; function != last; ++function) {
    // Local entities are _ZZ <encoding of the function> E <name>; the encoding is the symbol without its _Z.
    std::string prefix = "_ZZ";
    prefix += function->second.substr(2);
    prefix += 'E';
    for (auto it = kSymbols.local_statics.lower_bound(prefix);
         it != kSymbols.local_statics.end() && it->first.substr(0, prefix.size()) == prefix; ++it) {
      variables.push_back(it->second);
    }
  }
  return variables;
}

}  // namespace

const std::vector<MemoryRange>& shared_variables(const void* kernel) {
  static std::unordered_map<const void*, std::vector<MemoryRange>> known;
  const auto it = known.find(kernel);
  if (it != known.end()) return it->second;
  return known[kernel] = kernel == nullptr ? std::vector<MemoryRange>() : find_variables(kernel);
}

}  // namespace simt
