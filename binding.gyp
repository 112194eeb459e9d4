{
  # The one .node: csrc/{abi,ops,core,cpu,napi}. The kernel files are compiled once for each instruction set; the sets'
  # objects come after the core's on the link line, so that a shared inline function is the one of the lowest set.
  "variables": {
    "cpu_kernels": [
      "csrc/cpu/table.cc",
      "csrc/cpu/ssd.cc",
      "csrc/cpu/linear_attention.cc",
      "csrc/cpu/copy.cc",
      "csrc/cpu/reduction.cc",
      "csrc/cpu/index.cc",
      "csrc/cpu/loss.cc",
      "csrc/cpu/optimizer.cc",
      "csrc/cpu/sampling.cc",
      "csrc/cpu/causal_conv1d.cc",
      "csrc/cpu/selective_scan.cc",
      "csrc/cpu/selective_state_update.cc",
      "csrc/cpu/elementwise.cc",
      "csrc/cpu/attention.cc",
      "csrc/cpu/attention_kv_cache.cc",
      "csrc/cpu/rope.cc",
      "csrc/cpu/gated_rms_norm.cc",
      "csrc/cpu/layer_norm.cc",
      "csrc/cpu/activation.cc",
      "csrc/cpu/rms_norm.cc",
      "csrc/cpu/gemm.cc",
      "csrc/cpu/linear.cc",
      "csrc/cpu/matmul.cc",
      "csrc/cpu/embedding.cc",
      "csrc/cpu/patch_embed.cc",
      "csrc/cpu/pixel_shuffle.cc",
      "csrc/cpu/pos_embed_bicubic.cc"
    ],
    "common_flags": ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-psabi"]
  },
  "target_defaults": {
    "include_dirs": ["csrc"],
    "cflags!": ["-O2", "-Wno-unused-parameter"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti"],
    "cflags": ["<@(common_flags)"],
    "xcode_settings": { "GCC_ENABLE_CPP_EXCEPTIONS": "YES", "CLANG_CXX_LANGUAGE_STANDARD": "gnu++17", "OTHER_CFLAGS": ["<@(common_flags)"] }
  },
  "targets": [
    {
      "target_name": "kernels_base",
      "type": "static_library",
      "defines": ["MM_ISA=base"],
      "sources": ["<@(cpu_kernels)"]
    },
    {
      "target_name": "mmmamba",
      "dependencies": ["kernels_base"],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["MM_VERSION=<!(node -p \"require('./package.json').version\")", "NAPI_VERSION=9", "NAPI_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "sources": [
        "csrc/core/backends.cc",
        "csrc/core/dispatcher.cc",
        "csrc/core/graph.cc",
        "csrc/core/kernels.cc",
        "csrc/core/pool.cc",
        "csrc/core/profile.cc",
        "csrc/core/registry.cc",
        "csrc/core/storage.cc",
        "csrc/core/stream.cc",
        "csrc/cpu/backend.cc",
        "csrc/cpu/onednn.cc",
        "csrc/napi/addon.cc",
        "csrc/napi/environment.cc",
        "csrc/napi/handle.cc"
      ],
      "libraries": ["-ldl", "-lpthread"],
      "conditions": [
        # Node unloads the library with the last environment that loaded it, and the pool's threads would go on in what was unloaded.
        ["OS=='linux'", { "ldflags": ["-Wl,-z,nodelete"] }],
        ["target_arch=='x64'", { "dependencies": ["kernels_avx2", "kernels_avx512"] }]
      ]
    }
  ],
  "conditions": [
    ["target_arch=='x64'", {
      "targets": [
        {
          "target_name": "kernels_avx2",
          "type": "static_library",
          "defines": ["MM_ISA=avx2"],
          "cflags": ["-mavx2", "-mfma", "-mf16c"],
          "sources": ["<@(cpu_kernels)"]
        },
        {
          "target_name": "kernels_avx512",
          "type": "static_library",
          "defines": ["MM_ISA=avx512"],
          "cflags": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
          "sources": ["<@(cpu_kernels)"]
        }
      ]
    }]
  ]
}
