import runpy, torch
f = runpy.run_path("/work/tmpx/w5a/tests/engine/models/families.py")
torch.manual_seed(0)
m,t = f["FAMILIES"]["qwen3_vl"].make(); m.eval()
ins=[];outs=[]
for l in m.model.language_model.layers:
    l.register_forward_pre_hook(lambda mod,a,k: ins.append((a[0] if a else k["hidden_states"])), with_kwargs=True)
    l.register_forward_hook(lambda mod,a,o: outs.append(o[0] if isinstance(o,tuple) else o))
fin=[]
m.model.language_model.norm.register_forward_hook(lambda mod,a,o: fin.append(o))
h = m(**t, output_hidden_states=True, use_cache=False).hidden_states
for k,x in enumerate(h): print(k, "in", [torch.equal(x,i) for i in ins], "out",[torch.equal(x,i) for i in outs], "norm", torch.equal(x,fin[0]))
