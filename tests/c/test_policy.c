/* Which tensors are kept, and by which rule. */
#include "test.h"

static const char *rule(const char *name) {
    const char *found = aq_sensitive_rule(name);
    return found ? found : "";
}

TEST(words_are_whole) {
    CHECK_STR(rule("lm_head.weight"), "head");
    CHECK_STR(rule("head.weight"), "head");
    CHECK_STR(rule("blocks.0.ahead.weight"), "");
    CHECK_STR(rule("ahead.weight"), "");
    CHECK_STR(rule("header.weight"), "");
    CHECK_STR(rule("blocks.3.overhead_proj.weight"), "");
    CHECK_STR(rule("model.embed_tokens.weight"), "embedding");
    CHECK_STR(rule("embedded.weight"), "");
    CHECK_STR(rule("transformer.wte.weight"), "embedding");
    CHECK_STR(rule("newton.weight"), "");
}

TEST(first_and_last_are_outside_of_blocks) {
    CHECK_STR(rule("proj_out_1.weight"), "last projection");
    CHECK_STR(rule("proj_out.weight"), "last projection");
    CHECK_STR(rule("conv_in.weight"), "first projection");
    CHECK_STR(rule("img_in.weight"), "first projection");
    CHECK_STR(rule("norm_out.linear.weight"), "last projection");
    CHECK_STR(rule("final_layer.linear.weight"), "last projection");
    CHECK_STR(rule("single_transformer_blocks.7.proj_out.weight"), "");
    CHECK_STR(rule("down_blocks.0.attentions.1.proj_in.weight"), "");
    CHECK_STR(rule("blocks.0.attn.to_out.0.weight"), "");
    CHECK_STR(rule("attn.to_out.weight"), "");
    CHECK_STR(rule("model.diffusion_model.input_blocks.0.0.weight"), "first projection");
    CHECK_STR(rule("model.diffusion_model.input_blocks.1.0.in_layers.2.weight"), "");
    CHECK_STR(rule("model.diffusion_model.out.2.weight"), "last projection");
}

TEST(norms_own_their_tensor) {
    CHECK_STR(rule("transformer_blocks.0.norm1.weight"), "norm");
    CHECK_STR(rule("blocks.0.input_layernorm.weight"), "norm");
    CHECK_STR(rule("h.0.ln_1.weight"), "norm");
    CHECK_STR(rule("transformer_blocks.0.norm1.linear.weight"), "");
    CHECK_STR(rule("blocks.0.normal.weight"), "");
}

TEST(the_dit_of_the_fixture) {
    CHECK_STR(rule("pos_embed.proj.weight"), "embedding");
    CHECK_STR(rule("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"),
              "embedding");
    CHECK_STR(rule("transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.weight"),
              "embedding");
    CHECK_STR(rule("transformer_blocks.0.attn1.to_q.weight"), "");
    CHECK_STR(rule("transformer_blocks.0.ff.net.0.proj.weight"), "");
    CHECK_STR(rule("transformer_blocks.0.ff.net.2.weight"), "");
}

TEST(odd_names) {
    CHECK_STR(rule(""), "");
    CHECK_STR(rule("."), "");
    CHECK_STR(rule("..."), "");
    CHECK_STR(rule("weight"), "");
    CHECK_STR(rule("_"), "");
    CHECK_STR(rule("EMBEDDING.weight"), "embedding");
    CHECK_STR(rule("0.1.2"), "");
}

TEST(config_before_the_built_in_rules) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_LOCAL);
    aq_layer_bits bits[3];
    const char *layers[1], *patterns[1];
    bits[0].pattern = "*.ff.*";
    bits[0].bits = 8;
    bits[1].pattern = "lm_head";
    bits[1].bits = 4;
    bits[2].pattern = "*";
    bits[2].bits = 2;
    layers[0] = "blocks.1";
    patterns[0] = "*to_v*";
    aq_decision d = aq_decide(&config, "blocks.0.ff.w.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 4 && d.reason == AQ_REASON_QUANTIZED);
    config.layer_bits = bits;
    config.layer_bits_count = 2;
    d = aq_decide(&config, "blocks.0.ff.w.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 8 && d.reason == AQ_REASON_LAYER_BITS);
    CHECK_STR(d.detail, "*.ff.*");
    d = aq_decide(&config, "lm_head.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 4);
    config.layer_bits_count = 3; /* the first match wins */
    d = aq_decide(&config, "blocks.0.ff.w.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 8);
    d = aq_decide(&config, "x.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 2);
    config.layer_bits_count = 0;
    config.sensitive_layers = layers;
    config.sensitive_layer_count = 1;
    config.sensitive_patterns = patterns;
    config.sensitive_pattern_count = 1;
    d = aq_decide(&config, "blocks.1.to_q.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 16 && d.reason == AQ_REASON_SENSITIVE_CONFIG);
    d = aq_decide(&config, "blocks.10.to_q.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 4);
    d = aq_decide(&config, "blocks.10.to_v.weight", AQ_DTYPE_BF16, 2, 64, 64);
    CHECK(d.bits == 16);
    CHECK_STR(d.detail, "*to_v*");
    config.skip_sensitive_layers = true;
    CHECK(aq_decide(&config, "lm_head.weight", AQ_DTYPE_F32, 2, 64, 64).bits == 16);
    config.skip_sensitive_layers = false;
    CHECK(aq_decide(&config, "lm_head.weight", AQ_DTYPE_F32, 2, 64, 64).bits == 4);
}

TEST(never) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_EDGE);
    aq_layer_bits all;
    all.pattern = "*";
    all.bits = 4;
    config.layer_bits = &all;
    config.layer_bits_count = 1;
    CHECK(aq_decide(&config, "a.weight", AQ_DTYPE_I64, 2, 64, 64).reason == AQ_REASON_NOT_FLOAT);
    CHECK(aq_decide(&config, "a.weight", AQ_DTYPE_BOOL, 2, 64, 64).bits == 16);
    CHECK(aq_decide(&config, "a.weight", AQ_DTYPE_F32, 1, 1, 64).reason == AQ_REASON_NOT_MATRIX);
    CHECK(aq_decide(&config, "a.weight", AQ_DTYPE_F32, 0, 1, 1).bits == 16);
    CHECK(aq_decide(&config, "a.weight", AQ_DTYPE_F32, 2, 0, 64).bits == 16);
    CHECK(aq_decide(&config, "a.weight", AQ_DTYPE_F32, 2, 64, 0).bits == 16);
    CHECK(aq_decide(&config, "a.weight", AQ_DTYPE_F8_E4M3, 2, 64, 64).bits == 4);
}

int main(void) {
    RUN(words_are_whole);
    RUN(first_and_last_are_outside_of_blocks);
    RUN(norms_own_their_tensor);
    RUN(the_dit_of_the_fixture);
    RUN(odd_names);
    RUN(config_before_the_built_in_rules);
    RUN(never);
    return test_end();
}
