/* Architectures that readers of GGUF know, and the original tensor names that they expect where
 * diffusers has names of its own. Facts of the formats; tests compare them with diffusers' own
 * conversion. */
#include "gguf.h"

#ifndef ARROWQUANT_NO_STDIO

#define AQ_READ_BY_ALL "stable-diffusion.cpp, ComfyUI-GGUF and diffusers (from_single_file)"
#define AQ_READ_BY_BOTH "stable-diffusion.cpp and ComfyUI-GGUF"
#define AQ_READ_BY_COMFY "ComfyUI-GGUF, if the names are those of the original checkpoint"

static const aq_gguf_architecture aq_gguf_architectures[] = {
    { "flux", "FluxTransformer2DModel", AQ_GGUF_FAMILY_FLUX,
      { "double_blocks.0.img_attn.proj.weight", "single_blocks.0.linear1.weight" },
      AQ_READ_BY_ALL },
    { "sd3", "SD3Transformer2DModel", AQ_GGUF_FAMILY_SD3,
      { "joint_blocks.0.x_block.attn.qkv.weight", NULL }, AQ_READ_BY_ALL },
    { "wan", "WanTransformer3DModel", AQ_GGUF_FAMILY_WAN,
      { "blocks.0.self_attn.norm_q.weight", "head.modulation" }, AQ_READ_BY_ALL },
    { "sdxl", "UNet2DConditionModel", AQ_GGUF_FAMILY_UNET,
      { "add_embedding.linear_1.weight", "down_blocks.0.downsamplers.0.conv.weight" },
      AQ_READ_BY_BOTH },
    { "sdxl", NULL, AQ_GGUF_FAMILY_NONE,
      { "label_emb.0.0.weight", "input_blocks.0.0.weight" }, AQ_READ_BY_BOTH },
    { "sd1", "UNet2DConditionModel", AQ_GGUF_FAMILY_UNET,
      { "down_blocks.0.downsamplers.0.conv.weight", NULL }, AQ_READ_BY_BOTH },
    { "sd1", NULL, AQ_GGUF_FAMILY_NONE,
      { "input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight" }, AQ_READ_BY_BOTH },
    { "aura", "AuraFlowTransformer2DModel", AQ_GGUF_FAMILY_NONE,
      { "double_layers.3.modX.1.weight", NULL }, AQ_READ_BY_COMFY },
    { "hidream", "HiDreamImageTransformer2DModel", AQ_GGUF_FAMILY_NONE,
      { "caption_projection.0.linear.weight",
        "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight" }, AQ_READ_BY_COMFY },
    { "cosmos", "CosmosTransformer3DModel", AQ_GGUF_FAMILY_NONE,
      { "blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight" },
      AQ_READ_BY_COMFY },
    { "ltxv", "LTXVideoTransformer3DModel", AQ_GGUF_FAMILY_NONE,
      { "adaln_single.emb.timestep_embedder.linear_2.weight", "caption_projection.linear_2.weight" },
      AQ_READ_BY_COMFY },
    { "hyvid", "HunyuanVideoTransformer3DModel", AQ_GGUF_FAMILY_NONE,
      { "double_blocks.0.img_attn_proj.weight",
        "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight" }, AQ_READ_BY_COMFY },
    { "lumina2", "Lumina2Transformer2DModel", AQ_GGUF_FAMILY_NONE,
      { "cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight" }, AQ_READ_BY_COMFY },
    { "qwen_image", "QwenImageTransformer2DModel", AQ_GGUF_FAMILY_NONE,
      { "transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.txt_mod.1.weight" },
      "stable-diffusion.cpp, ComfyUI-GGUF and diffusers" },
};
#define AQ_GGUF_ARCHITECTURES (sizeof(aq_gguf_architectures) / sizeof(aq_gguf_architectures[0]))

AQ_LIB const aq_gguf_architecture *
aq_gguf_detect(const char *model_class, bool (*has)(const void *user, const char *name),
               const void *user) {
    for (size_t i = 0; i < AQ_GGUF_ARCHITECTURES; i++) { /* original names, or diffusers' UNets */
        const aq_gguf_architecture *known = &aq_gguf_architectures[i];
        if (has(user, known->marks[0]) && (!known->marks[1] || has(user, known->marks[1])))
            return known;
    }
    for (size_t i = 0; model_class && i < AQ_GGUF_ARCHITECTURES; i++) {
        const aq_gguf_architecture *known = &aq_gguf_architectures[i];
        if (known->model_class && known->family != AQ_GGUF_FAMILY_UNET &&
            strcmp(known->model_class, model_class) == 0)
            return known;
    }
    /* a file without config.json */
    if (has(user, "transformer_blocks.0.attn.add_q_proj.weight") &&
        has(user, "single_transformer_blocks.0.proj_mlp.weight"))
        return &aq_gguf_architectures[0];
    if (has(user, "transformer_blocks.0.attn.add_q_proj.weight") &&
        has(user, "pos_embed.proj.weight"))
        return &aq_gguf_architectures[1];
    if (has(user, "condition_embedder.time_proj.weight")) return &aq_gguf_architectures[2];
    return NULL;
}

/* ---- rules: "#" stands for a number, the same in both */

typedef struct aq_gguf_rule {
    const char *from, *to; /* a whole name, or a name without its last part */
    uint8_t slot, slots;   /* of a stack; 0, 0: alone */
} aq_gguf_rule;

static const aq_gguf_rule aq_flux_rules[] = {
    { "time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", 0, 0 },
    { "time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", 0, 0 },
    { "time_text_embed.text_embedder.linear_1", "vector_in.in_layer", 0, 0 },
    { "time_text_embed.text_embedder.linear_2", "vector_in.out_layer", 0, 0 },
    { "time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", 0, 0 },
    { "time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", 0, 0 },
    { "context_embedder", "txt_in", 0, 0 },
    { "x_embedder", "img_in", 0, 0 },
    { "transformer_blocks.#.norm1.linear", "double_blocks.#.img_mod.lin", 0, 0 },
    { "transformer_blocks.#.norm1_context.linear", "double_blocks.#.txt_mod.lin", 0, 0 },
    { "transformer_blocks.#.attn.to_q", "double_blocks.#.img_attn.qkv", 0, 3 },
    { "transformer_blocks.#.attn.to_k", "double_blocks.#.img_attn.qkv", 1, 3 },
    { "transformer_blocks.#.attn.to_v", "double_blocks.#.img_attn.qkv", 2, 3 },
    { "transformer_blocks.#.attn.add_q_proj", "double_blocks.#.txt_attn.qkv", 0, 3 },
    { "transformer_blocks.#.attn.add_k_proj", "double_blocks.#.txt_attn.qkv", 1, 3 },
    { "transformer_blocks.#.attn.add_v_proj", "double_blocks.#.txt_attn.qkv", 2, 3 },
    { "transformer_blocks.#.attn.norm_q.weight", "double_blocks.#.img_attn.norm.query_norm.scale",
      0, 0 },
    { "transformer_blocks.#.attn.norm_k.weight", "double_blocks.#.img_attn.norm.key_norm.scale", 0,
      0 },
    { "transformer_blocks.#.attn.norm_added_q.weight",
      "double_blocks.#.txt_attn.norm.query_norm.scale", 0, 0 },
    { "transformer_blocks.#.attn.norm_added_k.weight",
      "double_blocks.#.txt_attn.norm.key_norm.scale", 0, 0 },
    { "transformer_blocks.#.ff.net.0.proj", "double_blocks.#.img_mlp.0", 0, 0 },
    { "transformer_blocks.#.ff.net.2", "double_blocks.#.img_mlp.2", 0, 0 },
    { "transformer_blocks.#.ff_context.net.0.proj", "double_blocks.#.txt_mlp.0", 0, 0 },
    { "transformer_blocks.#.ff_context.net.2", "double_blocks.#.txt_mlp.2", 0, 0 },
    { "transformer_blocks.#.attn.to_out.0", "double_blocks.#.img_attn.proj", 0, 0 },
    { "transformer_blocks.#.attn.to_add_out", "double_blocks.#.txt_attn.proj", 0, 0 },
    { "single_transformer_blocks.#.norm.linear", "single_blocks.#.modulation.lin", 0, 0 },
    { "single_transformer_blocks.#.attn.to_q", "single_blocks.#.linear1", 0, 4 },
    { "single_transformer_blocks.#.attn.to_k", "single_blocks.#.linear1", 1, 4 },
    { "single_transformer_blocks.#.attn.to_v", "single_blocks.#.linear1", 2, 4 },
    { "single_transformer_blocks.#.proj_mlp", "single_blocks.#.linear1", 3, 4 },
    { "single_transformer_blocks.#.attn.norm_q.weight", "single_blocks.#.norm.query_norm.scale", 0,
      0 },
    { "single_transformer_blocks.#.attn.norm_k.weight", "single_blocks.#.norm.key_norm.scale", 0,
      0 },
    { "single_transformer_blocks.#.proj_out", "single_blocks.#.linear2", 0, 0 },
    { "proj_out", "final_layer.linear", 0, 0 },
    { "norm_out.linear", "final_layer.adaLN_modulation.1", 0, 0 },
    { NULL, NULL, 0, 0 },
};

static const aq_gguf_rule aq_sd3_rules[] = {
    { "pos_embed.pos_embed", "pos_embed", 0, 0 },
    { "pos_embed.proj", "x_embedder.proj", 0, 0 },
    { "context_embedder", "context_embedder", 0, 0 },
    { "time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0", 0, 0 },
    { "time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2", 0, 0 },
    { "time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0", 0, 0 },
    { "time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2", 0, 0 },
    { "transformer_blocks.#.attn.to_q", "joint_blocks.#.x_block.attn.qkv", 0, 3 },
    { "transformer_blocks.#.attn.to_k", "joint_blocks.#.x_block.attn.qkv", 1, 3 },
    { "transformer_blocks.#.attn.to_v", "joint_blocks.#.x_block.attn.qkv", 2, 3 },
    { "transformer_blocks.#.attn.add_q_proj", "joint_blocks.#.context_block.attn.qkv", 0, 3 },
    { "transformer_blocks.#.attn.add_k_proj", "joint_blocks.#.context_block.attn.qkv", 1, 3 },
    { "transformer_blocks.#.attn.add_v_proj", "joint_blocks.#.context_block.attn.qkv", 2, 3 },
    { "transformer_blocks.#.attn2.to_q", "joint_blocks.#.x_block.attn2.qkv", 0, 3 },
    { "transformer_blocks.#.attn2.to_k", "joint_blocks.#.x_block.attn2.qkv", 1, 3 },
    { "transformer_blocks.#.attn2.to_v", "joint_blocks.#.x_block.attn2.qkv", 2, 3 },
    { "transformer_blocks.#.attn.norm_q", "joint_blocks.#.x_block.attn.ln_q", 0, 0 },
    { "transformer_blocks.#.attn.norm_k", "joint_blocks.#.x_block.attn.ln_k", 0, 0 },
    { "transformer_blocks.#.attn.norm_added_q", "joint_blocks.#.context_block.attn.ln_q", 0, 0 },
    { "transformer_blocks.#.attn.norm_added_k", "joint_blocks.#.context_block.attn.ln_k", 0, 0 },
    { "transformer_blocks.#.attn2.norm_q", "joint_blocks.#.x_block.attn2.ln_q", 0, 0 },
    { "transformer_blocks.#.attn2.norm_k", "joint_blocks.#.x_block.attn2.ln_k", 0, 0 },
    { "transformer_blocks.#.attn.to_out.0", "joint_blocks.#.x_block.attn.proj", 0, 0 },
    { "transformer_blocks.#.attn.to_add_out", "joint_blocks.#.context_block.attn.proj", 0, 0 },
    { "transformer_blocks.#.attn2.to_out.0", "joint_blocks.#.x_block.attn2.proj", 0, 0 },
    { "transformer_blocks.#.norm1.linear", "joint_blocks.#.x_block.adaLN_modulation.1", 0, 0 },
    { "transformer_blocks.#.norm1_context.linear",
      "joint_blocks.#.context_block.adaLN_modulation.1", 0, 0 },
    { "transformer_blocks.#.ff.net.0.proj", "joint_blocks.#.x_block.mlp.fc1", 0, 0 },
    { "transformer_blocks.#.ff.net.2", "joint_blocks.#.x_block.mlp.fc2", 0, 0 },
    { "transformer_blocks.#.ff_context.net.0.proj", "joint_blocks.#.context_block.mlp.fc1", 0, 0 },
    { "transformer_blocks.#.ff_context.net.2", "joint_blocks.#.context_block.mlp.fc2", 0, 0 },
    { "proj_out", "final_layer.linear", 0, 0 },
    { "norm_out.linear", "final_layer.adaLN_modulation.1", 0, 0 },
    { NULL, NULL, 0, 0 },
};

static const aq_gguf_rule aq_wan_rules[] = {
    { "condition_embedder.time_embedder.linear_1", "time_embedding.0", 0, 0 },
    { "condition_embedder.time_embedder.linear_2", "time_embedding.2", 0, 0 },
    { "condition_embedder.text_embedder.linear_1", "text_embedding.0", 0, 0 },
    { "condition_embedder.text_embedder.linear_2", "text_embedding.2", 0, 0 },
    { "condition_embedder.time_proj", "time_projection.1", 0, 0 },
    { "condition_embedder.image_embedder.norm1", "img_emb.proj.0", 0, 0 },
    { "condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1", 0, 0 },
    { "condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3", 0, 0 },
    { "condition_embedder.image_embedder.norm2", "img_emb.proj.4", 0, 0 },
    { "patch_embedding", "patch_embedding", 0, 0 },
    { "vace_patch_embedding", "vace_patch_embedding", 0, 0 },
    { "scale_shift_table", "head.modulation", 0, 0 },
    { "proj_out", "head.head", 0, 0 },
    { NULL, NULL, 0, 0 },
};

/* Inside blocks.# and vace_blocks.# of Wan. */
static const aq_gguf_rule aq_wan_block_rules[] = {
    { "scale_shift_table", "modulation", 0, 0 },
    { "attn1.to_q", "self_attn.q", 0, 0 },
    { "attn1.to_k", "self_attn.k", 0, 0 },
    { "attn1.to_v", "self_attn.v", 0, 0 },
    { "attn1.to_out.0", "self_attn.o", 0, 0 },
    { "attn1.norm_q", "self_attn.norm_q", 0, 0 },
    { "attn1.norm_k", "self_attn.norm_k", 0, 0 },
    { "attn2.to_q", "cross_attn.q", 0, 0 },
    { "attn2.to_k", "cross_attn.k", 0, 0 },
    { "attn2.to_v", "cross_attn.v", 0, 0 },
    { "attn2.to_out.0", "cross_attn.o", 0, 0 },
    { "attn2.norm_q", "cross_attn.norm_q", 0, 0 },
    { "attn2.norm_k", "cross_attn.norm_k", 0, 0 },
    { "attn2.add_k_proj", "cross_attn.k_img", 0, 0 },
    { "attn2.add_v_proj", "cross_attn.v_img", 0, 0 },
    { "attn2.norm_added_k", "cross_attn.norm_k_img", 0, 0 },
    { "norm2", "norm3", 0, 0 },
    { "norm3", "norm2", 0, 0 },
    { "ffn.net.0.proj", "ffn.0", 0, 0 },
    { "ffn.net.2", "ffn.2", 0, 0 },
    { "proj_in", "before_proj", 0, 0 },
    { "proj_out", "after_proj", 0, 0 },
    { NULL, NULL, 0, 0 },
};

static const aq_gguf_rule aq_unet_rules[] = {
    { "time_embedding.linear_1", "time_embed.0", 0, 0 },
    { "time_embedding.linear_2", "time_embed.2", 0, 0 },
    { "add_embedding.linear_1", "label_emb.0.0", 0, 0 },
    { "add_embedding.linear_2", "label_emb.0.2", 0, 0 },
    { "class_embedding.linear_1", "label_emb.0.0", 0, 0 },
    { "class_embedding.linear_2", "label_emb.0.2", 0, 0 },
    { "conv_in", "input_blocks.0.0", 0, 0 },
    { "conv_norm_out", "out.0", 0, 0 },
    { "conv_out", "out.2", 0, 0 },
    { NULL, NULL, 0, 0 },
};

/* Inside a residual block of a UNet. */
static const aq_gguf_rule aq_resnet_rules[] = {
    { "norm1", "in_layers.0", 0, 0 },
    { "conv1", "in_layers.2", 0, 0 },
    { "norm2", "out_layers.0", 0, 0 },
    { "conv2", "out_layers.3", 0, 0 },
    { "time_emb_proj", "emb_layers.1", 0, 0 },
    { "conv_shortcut", "skip_connection", 0, 0 },
    { NULL, NULL, 0, 0 },
};

/* ---- matching */

static bool aq_rule_digit(char c) {
    return c >= '0' && c <= '9';
}

/* The text after `pattern` at the start of `name`, or NULL; *number is what "#" stands for. */
static const char *aq_rule_match(const char *pattern, const char *name, const char **number,
                                 size_t *digits) {
    for (; *pattern; pattern++) {
        if (*pattern != '#') {
            if (*name++ != *pattern) return NULL;
            continue;
        }
        *number = name;
        while (aq_rule_digit(*name)) name++;
        *digits = (size_t)(name - *number);
        if (!*digits) return NULL;
    }
    return name;
}

static bool aq_rule_apply(const aq_gguf_rule *rules, const char *name, aq_gguf_rename *out) {
    for (; rules->from; rules++) {
        const char *number = "", *rest;
        size_t digits = 0, used = 0;
        rest = aq_rule_match(rules->from, name, &number, &digits);
        if (!rest || (*rest && (*rest != '.' || strchr(rest + 1, '.')))) continue;
        for (const char *c = rules->to; *c && used < sizeof(out->name); c++) {
            if (*c == '#')
                used += aq_format(out->name + used, sizeof(out->name) - used, "%.*s", (int)digits,
                                  number);
            else out->name[used++] = *c;
        }
        if (used + strlen(rest) >= sizeof(out->name)) return false;
        memcpy(out->name + used, rest, strlen(rest) + 1);
        out->slot = rules->slot;
        out->slots = rules->slots ? rules->slots : 1;
        return true;
    }
    return false;
}

/* The number at *name, which is left behind it and its dot. */
static bool aq_name_number(const char **name, uint64_t *out) {
    const char *c = *name;
    *out = 0;
    while (aq_rule_digit(*c) && *out < 100000) *out = *out * 10 + (uint64_t)(*c++ - '0');
    if (c == *name || *c != '.') return false;
    *name = c + 1;
    return true;
}

static bool aq_name_after(const char **name, const char *start) {
    size_t size = strlen(start);
    if (strncmp(*name, start, size) != 0) return false;
    *name += size;
    return true;
}

static bool aq_rename_wan(const char *name, aq_gguf_rename *out) {
    const char *rest = name;
    const char *kind = aq_name_after(&rest, "vace_blocks.") ? "vace_blocks." : "blocks.";
    aq_gguf_rename inner;
    uint64_t number;
    if (rest == name && !aq_name_after(&rest, "blocks.")) return aq_rule_apply(aq_wan_rules, name, out);
    if (!aq_name_number(&rest, &number) || !aq_rule_apply(aq_wan_block_rules, rest, &inner))
        return false;
    aq_format(out->name, sizeof(out->name), "%s%llu.%s", kind, (unsigned long long)number,
              inner.name);
    out->slots = 1;
    return true;
}

/* "resnets.L.REST" or "attentions.L.REST" as "PREFIX.I.0|1.REST", I = first + L · step. */
static bool aq_rename_unet_part(const char *rest, const char *prefix, uint64_t first,
                                uint64_t step, aq_gguf_rename *out) {
    aq_gguf_rename inner;
    uint64_t layer;
    bool attention = aq_name_after(&rest, "attentions.");
    if (!attention && !aq_name_after(&rest, "resnets.")) return false;
    if (!aq_name_number(&rest, &layer)) return false;
    uint64_t block = first + layer * step;
    if (!attention && !aq_rule_apply(aq_resnet_rules, rest, &inner)) return false;
    if (*prefix == 'm')
        aq_format(out->name, sizeof(out->name), "%s.%llu.%s", prefix,
                  (unsigned long long)(attention ? 1 : block), attention ? rest : inner.name);
    else
        aq_format(out->name, sizeof(out->name), "%s.%llu.%u.%s", prefix, (unsigned long long)block,
                  attention ? 1u : 0u, attention ? rest : inner.name);
    return true;
}

static bool aq_rename_unet(const aq_gguf_naming *naming, const char *name, aq_gguf_rename *out) {
    uint64_t block, each = naming->layers_per_block + 1;
    const char *rest = name;
    out->slots = 1;
    if (aq_name_after(&rest, "mid_block."))
        return aq_rename_unet_part(rest, "middle_block", 0, 2, out);
    if (aq_name_after(&rest, "down_blocks.")) {
        if (!aq_name_number(&rest, &block)) return false;
        if (!aq_name_after(&rest, "downsamplers.0.conv."))
            return aq_rename_unet_part(rest, "input_blocks", 1 + block * each, 1, out);
        aq_format(out->name, sizeof(out->name), "input_blocks.%llu.0.op.%s",
                  (unsigned long long)((block + 1) * each), rest);
        return true;
    }
    if (aq_name_after(&rest, "up_blocks.")) {
        if (!aq_name_number(&rest, &block)) return false;
        if (!aq_name_after(&rest, "upsamplers.0.conv."))
            return aq_rename_unet_part(rest, "output_blocks", block * each, 1, out);
        char mark[96]; /* behind the attention of the last layer, if there is one */
        aq_format(mark, sizeof(mark), "up_blocks.%llu.attentions.0.norm.weight",
                  (unsigned long long)block);
        aq_format(out->name, sizeof(out->name), "output_blocks.%llu.%u.conv.%s",
                  (unsigned long long)(block * each + naming->layers_per_block),
                  naming->has(naming->user, mark) ? 2u : 1u, rest);
        return true;
    }
    return aq_rule_apply(aq_unet_rules, name, out);
}

/* Layers whose scale and shift stand the other way round in the original. */
static bool aq_is_turned(const aq_gguf_naming *naming, const char *name) {
    char last[96];
    if (naming->family != AQ_GGUF_FAMILY_FLUX && naming->family != AQ_GGUF_FAMILY_SD3) return false;
    if (strncmp(name, "norm_out.linear.", 16) == 0) return true;
    aq_format(last, sizeof(last), "transformer_blocks.%llu.norm1_context.linear.",
              (unsigned long long)naming->last_block);
    return naming->family == AQ_GGUF_FAMILY_SD3 && strncmp(name, last, strlen(last)) == 0;
}

AQ_LIB bool aq_gguf_rename_tensor(const aq_gguf_naming *naming, const char *name,
                                  aq_gguf_rename *out) {
    memset(out, 0, sizeof(*out));
    out->slots = 1;
    if (strlen(name) >= sizeof(out->name) / 2) return false;
    out->turned = aq_is_turned(naming, name);
    switch (naming->family) {
    case AQ_GGUF_FAMILY_FLUX: return aq_rule_apply(aq_flux_rules, name, out);
    case AQ_GGUF_FAMILY_SD3: return aq_rule_apply(aq_sd3_rules, name, out);
    case AQ_GGUF_FAMILY_WAN: return aq_rename_wan(name, out);
    case AQ_GGUF_FAMILY_UNET: return aq_rename_unet(naming, name, out);
    case AQ_GGUF_FAMILY_NONE: break;
    }
    return false;
}

#undef AQ_READ_BY_ALL
#undef AQ_READ_BY_BOTH
#undef AQ_READ_BY_COMFY
#undef AQ_GGUF_ARCHITECTURES
#endif /* ARROWQUANT_NO_STDIO */
